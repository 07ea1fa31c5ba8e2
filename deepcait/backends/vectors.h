// Vectors of floats in the compiler's own types, and what is done to them: exponential, GELU, turning.
//
// Letters: W floats of a vector, M rows, D floats of a row (a multiple of W).

#pragma once

#include <cmath>
#include <cstdint>

#if defined(__AVX512F__) || defined(__FMA__)
#include <immintrin.h>
#endif

namespace {

#ifdef __AVX512F__
constexpr int W = 16;
#else
constexpr int W = 8;
#endif

typedef float vec __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * W), aligned(4), may_alias));

#ifdef __AVX512F__
constexpr int HALVINGS = 4;  // of W
constexpr ivec LANES = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
constexpr ivec ZIP = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};  // first halves of two, by turns
#else
constexpr int HALVINGS = 3;
constexpr ivec LANES = {0, 1, 2, 3, 4, 5, 6, 7};
constexpr ivec ZIP = {0, 8, 1, 9, 2, 10, 3, 11};
#endif

inline vec load(const float* from) { return *reinterpret_cast<const vec*>(from); }
inline void store(float* to, vec value) { *reinterpret_cast<vec*>(to) = value; }
inline vec spread(float value) { return value - vec{}; }
inline vec larger(vec a, vec b) { return a > b ? a : b; }
inline vec smaller(vec a, vec b) { return a < b ? a : b; }
// a b + c, rounded once where the processor can do that. Spelled out: a compiler that may choose (-ffp-contract) fuses
// in one place and not in the next, and a row's bits would depend on which tile it falls into.
inline vec fused(vec a, vec b, vec c) {
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
    return _mm256_fmadd_ps(a, b, c);
#elif defined(__FP_FAST_FMAF)
    for (int i = 0; i < W; i++) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
#else
    return a * b + c;
#endif
}
inline vec fused(vec a, float b, vec c) { return fused(a, spread(b), c); }

// c[0] x^(N - 1) + ... + c[N - 1].
template <int N>
inline vec polynomial(vec x, const float (&c)[N]) {
    vec sum = spread(c[0]);
#pragma GCC unroll 8
    for (int i = 1; i < N; i++) sum = fused(sum, x, spread(c[i]));
    return sum;
}

inline int64_t round_up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

inline float total(vec value) {
#pragma GCC unroll 4
    for (int step = W / 2; step > 0; step /= 2) value += __builtin_shuffle(value, LANES ^ step);
    return value[0];
}

inline float largest(vec value) {
#pragma GCC unroll 4
    for (int step = W / 2; step > 0; step /= 2) value = larger(value, __builtin_shuffle(value, LANES ^ step));
    return value[0];
}

inline float smallest(vec value) { return -largest(-value); }

// 1 / x within 1 unit in the last place: an estimate of 14 bits, refined once. A division takes longer.
inline vec reciprocal(vec x) {
#if defined(__AVX512F__)
    vec guess = reinterpret_cast<vec>(_mm512_rcp14_ps(reinterpret_cast<__m512>(x)));
    return fused(guess, fused(-x, guess, spread(1.0f)), guess);
#else
    return 1.0f / x;
#endif
}

// e^x for x <= 0, within 2 units in the last place (Cephes' expf); e^-64 below -64, far from denormal numbers, which
// some processors multiply slowly; NaN stays NaN.
inline vec exponential(vec x) {
    const vec shifter = spread(12582912.0f + 127);  // 1.5 * 2^23: adding it rounds to whole numbers; 127: 2^0 as bits
    x = x < -64.0f ? spread(-64.0f) : x;
    vec whole = fused(x, 1.44269504f, shifter);
    const ivec power = reinterpret_cast<ivec&>(whole) << 23;
    whole -= shifter;
    const vec rest = fused(whole, 2.12194440e-4f, fused(whole, -0.693359375f, x));
    vec sum = polynomial(rest, {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f,
                                1.6666665459e-1f, 5.0000001201e-1f});
    sum = fused(sum, rest * rest, rest) + 1.0f;
    return sum * reinterpret_cast<const vec&>(power);
}

// erf(x / sqrt 2), the quotient of polynomials that Eigen and XLA use, within 4e-7; beyond LAST it is 1.
inline vec scaled_erf(vec x) {
    constexpr float LAST = 3.8325069f;
    vec z = x * 0.70710678f;
    z = z < -LAST ? spread(-LAST) : z > LAST ? spread(LAST) : z;
    const vec s = z * z;
    const vec above = polynomial(s, {-2.72614225801306e-10f, 2.77068142495902e-08f, -2.10102402082508e-06f,
                                     -5.69250639462346e-05f, -7.34990630326855e-04f, -2.95459980854025e-03f,
                                     -1.60960333262415e-02f});
    const vec below = polynomial(s, {-1.45660718464996e-05f, -2.13374055278905e-04f, -1.68282697438203e-03f,
                                     -7.37332916720468e-03f, -1.42647390514189e-02f});
    return z * above * reciprocal(below);
}

// x (1 + erf(x / sqrt 2)) / 2.
inline vec gelu(vec x) {
    const vec half = x * 0.5f;
    return fused(half, scaled_erf(x), half);
}

// to[d][:] = rows[:][d] for W rows and W columns. HALVINGS times: first and second half of the rows, by turns.
inline void turn_square(const float* rows, int64_t step, float* to, int64_t to_step) {
    vec a[W], b[W];
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) a[i] = load(rows + i * step);
#pragma GCC unroll 4
    for (int round = 0; round < HALVINGS; round++) {
#pragma GCC unroll 16
        for (int i = 0; i < W; i++) b[i] = __builtin_shuffle(a[i / 2], a[i / 2 + W / 2], ZIP + i % 2 * (W / 2));
#pragma GCC unroll 16
        for (int i = 0; i < W; i++) a[i] = b[i];
    }
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) store(to + i * to_step, a[i]);
}

// to[d][m] = rows[m][d] for M rows.
void turn(const float* rows, int64_t M, int64_t D, float* to, int64_t to_step) {
    for (int64_t d = 0; d < D; d += W) {
        int64_t m = 0;
        for (; m + W <= M; m += W) turn_square(rows + m * D + d, D, to + d * to_step + m, to_step);
        if (m < M && M >= W) {  // the last W rows, some of them for the second time
            turn_square(rows + (M - W) * D + d, D, to + d * to_step + M - W, to_step);
            m = M;
        }
        for (; m < M; m++)
            for (int i = 0; i < W; i++) to[(d + i) * to_step + m] = rows[m * D + d + i];
    }
}

}  // namespace
