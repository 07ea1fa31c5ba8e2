// Products of small matrices: rows as they lie, times panels of columns.
//
// A panel is PANEL columns of the right matrix, one row after the other. A tile of the result, at most R rows of a
// panel, stays in registers while the sum runs over K. A row's sums are taken in the same order whatever tile it falls
// into, so a result does not depend on how rows are shared out.
//
// T is the number format (arithmetic.h). Both matrices, their steps and K are in units of 4 bytes. In int8, rows and
// columns have scales, rows have zeros, and columns have the sums of their cells, by which the zeros are taken off.
//
// Letters: M rows, K what is summed over, O columns of the result (a multiple of W), W floats of a vector.

#pragma once

#include <type_traits>

#include "arithmetic.h"
#include "tiles.h"

namespace {

#ifdef __AVX512F__
constexpr int R = 8, TILE = 3;  // 24 sums, 3 vectors of columns and a row's value in 32 registers
#else
constexpr int R = 6, TILE = 2;  // 12 sums, 2 vectors of columns and a row's value in 16 registers
#endif
constexpr int PANEL = TILE * W;

// Columns of a panel: tile registers take two vectors at a time, and so two times two.
template <class T>
int64_t panel_width() {
    return T::CELLS > 1 && may_use_tiles() ? 4 * W : PANEL;
}

// Floats stored, or added to what is there; cells for the attention stored, in the format T::maps; or the GELU as cells
// of the next layer, in the format T::written.
enum class Out { floats, add, cells, gelu };

struct Product {
    const float *left, *right, *bias;         // bias of each column, or null
    void* out;
    int64_t left_step, right_step, out_step;  // from a row to the next
    int64_t K;
    Out what;
    const float *row_scales, *row_zeros, *column_scales, *column_sums;  // for int8
};

inline void begin(const float* bias, vec& sum) { sum = bias ? load(bias) : vec{}; }
inline vec finish(const Product&, int64_t, int64_t, vec sum) { return sum; }
#if HAS_INT8
inline void begin(const float*, ivec& sum) { sum = ivec{}; }
inline vec finish(const Product& p, int64_t row, int64_t column, ivec sum) {
    const vec whole = reinterpret_cast<vec>(_mm512_cvtepi32_ps(reinterpret_cast<__m512i>(sum)));
    const vec value = fused(load(p.column_sums + column), -p.row_zeros[row], whole);
    return fused(value, load(p.column_scales + column) * p.row_scales[row], p.bias ? load(p.bias + column) : vec{});
}
#endif

// A tile's place, its panel, and what to fetch from memory meanwhile: so many floats on with each row of the panel.
struct Place {
    int64_t row, column, width;
    const float *right, *ahead;
    int64_t ahead_step;
};

template <class T, int ROWS, int NV>
void write(const Product& p, const Place& at, const typename T::sum (&sum)[ROWS][NV]) {
    typedef typename T::maps Cells;  // of what the attention multiplies
    typedef typename T::written Hidden;
    const int64_t first = at.row * p.out_step + at.column;
    const auto value = [&](int r, int v) { return finish(p, at.row + r, at.column + v * W, sum[r][v]); };
    if (p.what == Out::floats || p.what == Out::add) {
        float* const out = static_cast<float*>(p.out) + first;
        const bool add = p.what == Out::add;
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 3
            for (int v = 0; v < NV; v++) {
                float* const to = out + r * p.out_step + v * W;
                store(to, add ? value(r, v) + load(to) : value(r, v));
            }
        return;
    }
    if (p.what == Out::cells) {
        typename Cells::cell* const out = static_cast<typename Cells::cell*>(p.out) + first;
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 3
            for (int v = 0; v < NV; v++) Cells::store(out + r * p.out_step + v * W, value(r, v));
        return;
    }
    typename Hidden::cell* const out = static_cast<typename Hidden::cell*>(p.out) + first;
    float kept[ROWS * NV * W];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 3
        for (int v = 0; v < NV; v++) store(kept + (r * NV + v) * W, value(r, v));
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < NV; v++) Hidden::store(out + r * p.out_step + v * W, gelu(load(kept + (r * NV + v) * W)));
}

template <class T, int ROWS, int NV>
void tile(const Product& p, const Place& at) {
    typename T::sum sum[ROWS][NV];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 3
        for (int v = 0; v < NV; v++) begin(p.bias ? p.bias + at.column + v * W : nullptr, sum[r][v]);
    const int64_t left_step = p.left_step, right_step = p.right_step, ahead_step = at.ahead_step;
    const float *left = p.left + at.row * left_step, *right = at.right, *ahead = at.ahead;
    for (const float* const end = left + p.K; left < end; left++, right += right_step, ahead += ahead_step) {
        __builtin_prefetch(ahead, 0, 2);
        vec values[NV];
#pragma GCC unroll 3
        for (int v = 0; v < NV; v++) values[v] = load(right + v * W);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            const auto factor = T::spread(left + r * left_step);
#pragma GCC unroll 3
            for (int v = 0; v < NV; v++) sum[r][v] = T::add_product(factor, values[v], sum[r][v]);
        }
    }
    write<T>(p, at, sum);
}

template <class T, int ROWS>
void tile_of(const Product& p, const Place& at) {
    switch (at.width / W) {
        case 1: return tile<T, ROWS, 1>(p, at);
        case 2: return tile<T, ROWS, 2>(p, at);
        default: return tile<T, ROWS, TILE>(p, at);
    }
}

template <class T>
void tile_of(int64_t rows, const Product& p, const Place& at) {
    switch (rows) {
        case 1: return tile_of<T, 1>(p, at);
        case 2: return tile_of<T, 2>(p, at);
        case 3: return tile_of<T, 3>(p, at);
        case 4: return tile_of<T, 4>(p, at);
        case 5: return tile_of<T, 5>(p, at);
        case 6: return tile_of<T, 6>(p, at);
        case 7: return tile_of<T, (R < 7 ? R : 7)>(p, at);
        default: return tile_of<T, R>(p, at);
    }
}

#if HAS_TILES
// A block of the result from tile registers: at most 2 BLOCK_ROWS rows of one or two vectors, at the place `at`. With
// each step of the sum so many cache lines come from memory, from `at.ahead` on.
template <class T>
void tile_block(const Product& p, const Place& at, int64_t rows, int64_t lines) {
    alignas(64) float found[2 * BLOCK_ROWS * 2 * W];
    // Whole blocks of plain floats are stored from the registers.
    const bool plain = T::CELLS == 2 && (p.what == Out::floats || p.what == Out::add) && !p.bias;
    const bool direct = plain && rows % BLOCK_ROWS == 0;
    float* const to = direct ? static_cast<float*>(p.out) + at.row * p.out_step + at.column : found;
    const float* const left = p.left + at.row * p.left_step;
    const auto compute = [&](auto tall, auto wide) {
        block_product<T, tall.value, wide.value>(
            left, p.left_step, at.right, p.right_step, p.K, at.ahead, lines, to, direct ? p.out_step : 2 * W,
            direct && p.what == Out::add);
    };
    const auto keep = [&](auto vectors) {
        constexpr int NV = vectors.value;
        for (int64_t row = 0; row < rows; row++) {
            typename T::sum sum[1][NV];
            for (int v = 0; v < NV; v++) {
                begin(p.bias ? p.bias + at.column + v * W : nullptr, sum[0][v]);
                sum[0][v] += *reinterpret_cast<const typename T::sum*>(found + row * 2 * W + v * W);
            }
            write<T, 1, NV>(p, {at.row + row, at.column, NV * W, nullptr, nullptr, 0}, sum);
        }
    };
    const std::true_type yes;
    const std::false_type no;
    if (at.width > W) {
        rows > BLOCK_ROWS ? compute(yes, yes) : compute(no, yes);
        if (!direct) keep(std::integral_constant<int, 2>{});
    } else {
        rows > BLOCK_ROWS ? compute(yes, no) : compute(no, no);
        if (!direct) keep(std::integral_constant<int, 1>{});
    }
}

// `multiply` on tile registers.
template <class T>
void multiply_tiles(Product p, int64_t M, int64_t O) {
    shape_tiles(p.K % BLOCK_UNITS);
    const bool panels = p.right_step == 0;
    const int64_t steps = p.K / BLOCK_UNITS, panel = panel_width<T>();
    for (int64_t first = 0; first < O; first += panel) {
        const int64_t width = O - first < panel ? O - first : panel;
        const float* const right = p.right + first * (panels ? p.K : 1);
        if (panels) p.right_step = width;
        const int64_t all = steps * ((M + 2 * BLOCK_ROWS - 1) / (2 * BLOCK_ROWS)) * ((width + 2 * W - 1) / (2 * W));
        const int64_t lines = panels && all ? (width / W * p.K + all - 1) / all : 0;
        const float* ahead = right + (panels ? width * p.K : 0);
        for (int64_t row = 0; row < M; row += 2 * BLOCK_ROWS)
            for (int64_t column = 0; column < width; column += 2 * W, ahead += steps * lines * W) {
                const int64_t rows = M - row < 2 * BLOCK_ROWS ? M - row : 2 * BLOCK_ROWS;
                tile_block<T>(p, {row, first + column, width - column, right + column, ahead, 0}, rows, lines);
            }
    }
}
#endif

// out (M, O) = left (M, K) right (K, O). right is a sequence of panels where right_step is 0, else it lies in rows of
// that step. Tiles are of nearly equal heights: 9 rows are 5 and 4, since a tile of one row takes as long as one of 3.
// While the tiles of a panel are computed, the next panel (or what follows the last) comes from memory, bit by bit.
// Formats shorter than float32 are multiplied in tile registers where the processor has them.
template <class T>
void multiply(Product p, int64_t M, int64_t O) {
#if HAS_TILES
    if constexpr (T::CELLS > 1)
        if (may_use_tiles()) return multiply_tiles<T>(p, M, O);
#endif
    const int64_t tiles = (M + R - 1) / R;
    const bool panels = p.right_step == 0;
    Place at{0, 0, 0, p.right, p.right, panels ? (PANEL + tiles - 1) / tiles : 0};
    for (; at.column < O; at.column += PANEL) {
        at.width = O - at.column < PANEL ? O - at.column : PANEL;
        at.right = p.right + at.column * (panels ? p.K : 1);
        at.ahead = at.right + (panels ? at.width * p.K : 0);
        if (panels) p.right_step = at.width;
        at.row = 0;
        for (int64_t left = tiles; left > 0; left--, at.ahead += p.K * at.ahead_step) {
            const int64_t rows = (M - at.row + left - 1) / left;
            tile_of<T>(rows, p, at);
            at.row += rows;
        }
    }
}

// A linear layer's weight (O, K), K in cells -> panels; returns what follows them.
template <class T>
float* pack(const float* weight, int64_t O, int64_t K, float* units) {
    typename T::cell* to = reinterpret_cast<typename T::cell*>(units);
    const int64_t panel = panel_width<T>();
    for (int64_t column = 0; column < O; column += panel)
        for (int64_t k = 0; k < K; k += T::CELLS)
            for (int64_t o = column; o < O && o < column + panel; o++)
                for (int64_t i = 0; i < T::CELLS; i++) *to++ = T::round(weight[o * K + k + i]);
    return units + O * K / T::CELLS;
}

#if HAS_INT8
// The same; then the scales of the columns, and the sums of their cells.
template <>
float* pack<Int8>(const float* weight, int64_t O, int64_t K, float* units) {
    float* const scales = units + O * K / Int8::CELLS;
    for (int64_t o = 0; o < O; o++) {
        float most = 0;
        for (int64_t k = 0; k < K; k++) most = std::fmax(most, std::fabs(weight[o * K + k]));
        scales[o] = most / 127.0f, scales[O + o] = 0;
    }
    int8_t* to = reinterpret_cast<int8_t*>(units);
    const int64_t panel = panel_width<Int8>();
    for (int64_t column = 0; column < O; column += panel)
        for (int64_t k = 0; k < K; k += Int8::CELLS)
            for (int64_t o = column; o < O && o < column + panel; o++)
                for (int64_t i = 0; i < Int8::CELLS; i++, to++) {
                    *to = scales[o] > 0 ? static_cast<int8_t>(std::nearbyint(weight[o * K + k + i] / scales[o])) : 0;
                    scales[O + o] += *to;
                }
    return scales + 2 * O;
}
#endif

}  // namespace
