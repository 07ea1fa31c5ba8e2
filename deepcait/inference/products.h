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

template <int ROWS, int NV>
void tile(const Product& p, int64_t row, int64_t column, const float* right) {
    vec sum[ROWS][NV];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 3
        for (int v = 0; v < NV; v++) sum[r][v] = p.bias ? load(p.bias + column + v * W) : vec{};
    const float* left = p.left + row * p.left_step;
    const int64_t left_step = p.left_step, right_step = p.right_step;
    for (const float* const end = left + p.K; left < end; left++, right += right_step) {
        vec values[NV];
#pragma GCC unroll 3
        for (int v = 0; v < NV; v++) values[v] = load(right + v * W);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            const vec factor = spread(left[r * left_step]);
#pragma GCC unroll 3
            for (int v = 0; v < NV; v++) sum[r][v] += factor * values[v];
        }
    }
    float* const out = p.out + row * p.out_step + column;
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
void tile_of(const Product& p, int64_t row, int64_t column, int64_t width, const float* right) {
    switch (width / W) {
        case 1: return tile<ROWS, 1>(p, row, column, right);
        case 2: return tile<ROWS, 2>(p, row, column, right);
        default: return tile<ROWS, TILE>(p, row, column, right);
    }
}

void tile_of(int64_t rows, const Product& p, int64_t row, int64_t column, int64_t width, const float* right) {
    switch (rows) {
        case 1: return tile_of<1>(p, row, column, width, right);
        case 2: return tile_of<2>(p, row, column, width, right);
        case 3: return tile_of<3>(p, row, column, width, right);
        case 4: return tile_of<4>(p, row, column, width, right);
        case 5: return tile_of<5>(p, row, column, width, right);
        case 6: return tile_of<6>(p, row, column, width, right);
        case 7: return tile_of<(R < 7 ? R : 7)>(p, row, column, width, right);
        default: return tile_of<R>(p, row, column, width, right);
    }
}

// out (M, O) = left (M, K) right (K, O). right is a sequence of panels where right_step is 0, else it lies in rows of
// that step. Tiles are of nearly equal heights: 9 rows are 5 and 4, since a tile of one row takes as long as one of 3.
void multiply(Product p, int64_t M, int64_t O) {
    const int64_t tiles = (M + R - 1) / R;
    const bool panels = p.right_step == 0;
    for (int64_t column = 0; column < O; column += PANEL) {
        const int64_t width = O - column < PANEL ? O - column : PANEL;
        const float* const right = p.right + column * (panels ? p.K : 1);
        if (panels) p.right_step = width;
        for (int64_t t = 0, row = 0; t < tiles; t++) {
            const int64_t rows = (M - row + tiles - t - 1) / (tiles - t);
            tile_of(rows, p, row, column, width, right);
            row += rows;
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
