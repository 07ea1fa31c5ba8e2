// Products of small matrices: rows as they lie, times panels of columns.
//
// A panel is PANEL columns of the right matrix, one row after the other. A tile of the result, at most R rows of a
// panel, stays in registers while the sum runs over K. A row's sums are taken in the same order whatever tile it falls
// into, so a result does not depend on how rows are shared out.
//
// Letters: M rows, K what is summed over, O columns of the result (a multiple of W), W floats of a vector.

#pragma once

#include "vectors.h"

namespace {

#ifdef __AVX512F__
constexpr int R = 8, TILE = 3;  // 24 sums, 3 vectors of columns and a row's value in 32 registers
#else
constexpr int R = 6, TILE = 2;  // 12 sums, 2 vectors of columns and a row's value in 16 registers
#endif
constexpr int PANEL = TILE * W;

enum class Out { put, add, gelu };  // stored, added to what is there, or its GELU stored

struct Product {
    const float *left, *right, *bias;         // bias of each column, or null
    float* out;
    int64_t left_step, right_step, out_step;  // from a row to the next
    int64_t K;
    Out what;
};

// A tile's place, its panel, and what to fetch from memory meanwhile: so many floats on with each row of the panel.
struct Place {
    int64_t row, column, width;
    const float *right, *ahead;
    int64_t ahead_step;
};

template <int ROWS, int NV>
void tile(const Product& p, const Place& at) {
    vec sum[ROWS][NV];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 3
        for (int v = 0; v < NV; v++) sum[r][v] = p.bias ? load(p.bias + at.column + v * W) : vec{};
    const int64_t left_step = p.left_step, right_step = p.right_step, ahead_step = at.ahead_step;
    const float *left = p.left + at.row * left_step, *right = at.right, *ahead = at.ahead;
    for (const float* const end = left + p.K; left < end; left++, right += right_step, ahead += ahead_step) {
        __builtin_prefetch(ahead, 0, 2);
        vec values[NV];
#pragma GCC unroll 3
        for (int v = 0; v < NV; v++) values[v] = load(right + v * W);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            const vec factor = spread(left[r * left_step]);
#pragma GCC unroll 3
            for (int v = 0; v < NV; v++) sum[r][v] = fused(factor, values[v], sum[r][v]);
        }
    }
    float* const out = p.out + at.row * p.out_step + at.column;
    const bool add = p.what == Out::add;
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 3
        for (int v = 0; v < NV; v++) {
            float* const to = out + r * p.out_step + v * W;
            store(to, add ? sum[r][v] + load(to) : sum[r][v]);
        }
    if (p.what != Out::gelu) return;
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < NV; v++) store(out + r * p.out_step + v * W, gelu(load(out + r * p.out_step + v * W)));
}

template <int ROWS>
void tile_of(const Product& p, const Place& at) {
    switch (at.width / W) {
        case 1: return tile<ROWS, 1>(p, at);
        case 2: return tile<ROWS, 2>(p, at);
        default: return tile<ROWS, TILE>(p, at);
    }
}

void tile_of(int64_t rows, const Product& p, const Place& at) {
    switch (rows) {
        case 1: return tile_of<1>(p, at);
        case 2: return tile_of<2>(p, at);
        case 3: return tile_of<3>(p, at);
        case 4: return tile_of<4>(p, at);
        case 5: return tile_of<5>(p, at);
        case 6: return tile_of<6>(p, at);
        case 7: return tile_of<(R < 7 ? R : 7)>(p, at);
        default: return tile_of<R>(p, at);
    }
}

// out (M, O) = left (M, K) right (K, O). right is a sequence of panels where right_step is 0, else it lies in rows of
// that step. Tiles are of nearly equal heights: 9 rows are 5 and 4, since a tile of one row takes as long as one of 3.
// While the tiles of a panel are computed, the next panel (or what follows the last) comes from memory, bit by bit.
void multiply(Product p, int64_t M, int64_t O) {
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
            tile_of(rows, p, at);
            at.row += rows;
        }
    }
}

// A linear layer's weight (O, K) -> panels.
void pack(const float* weight, int64_t O, int64_t K, float* to) {
    for (int64_t column = 0; column < O; column += PANEL)
        for (int64_t k = 0; k < K; k++)
            for (int64_t o = column; o < O && o < column + PANEL; o++) *to++ = weight[o * K + k];
}

}  // namespace
