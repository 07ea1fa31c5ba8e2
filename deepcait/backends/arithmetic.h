// The number formats that products are computed in. Results are float32 before they are stored.
//
// A cell is a stored activation or weight. A unit is 4 bytes of cells that follow each other along the axis that is
// summed over: products take one unit of the left matrix and a vector of units of the right one at a time.
//
// Of each format: sum, what the registers of a product hold; written, the format of results that are stored; maps, the
// format of the attention's products.

#pragma once

#include <cstring>

#include "vectors.h"

namespace {

struct Fp32 {
    typedef float cell;
    typedef vec sum;
    typedef Fp32 written, maps;
    static constexpr int CELLS = 1;  // in a unit

    static vec spread(const float* unit) { return ::spread(*unit); }
    static vec add_product(vec left, vec right, vec sum) { return fused(left, right, sum); }
    static void store(cell* to, vec values) { ::store(to, values); }
    static cell round(float value) { return value; }
};

typedef int32_t any_int __attribute__((may_alias));

#ifdef __AVX512BF16__
#define HAS_BF16 1

struct Bf16 {
    typedef uint16_t cell;
    typedef vec sum;
    typedef Bf16 written, maps;
    static constexpr int CELLS = 2;

    static vec spread(const float* unit) {
        return reinterpret_cast<vec>(_mm512_set1_epi32(*reinterpret_cast<const any_int*>(unit)));
    }
    static vec add_product(vec left, vec right, vec sum) {
        return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(left), reinterpret_cast<__m512bh>(right));
    }
    static void store(cell* to, vec values) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(values)));
    }
    // To the nearest, of two equally near to the even one, as `store` does.
    static cell round(float value) {
        uint32_t bits;
        std::memcpy(&bits, &value, 4);
        if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fc0;
        return static_cast<cell>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
};

// Rows (M, D) -> units (M / 2, D) of two rows each; M is even, or the row after the last is 0.
void pair_rows(const uint16_t* rows, int64_t M, int64_t D, float* to) {
    const auto wide = [](const uint16_t* from) {
        return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    };
    for (int64_t m = 0; m < M; m += 2, rows += 2 * D, to += D)
        for (int64_t d = 0; d < D; d += W) {
            const __m512i second = m + 1 < M ? _mm512_slli_epi32(wide(rows + D + d), 16) : _mm512_setzero_si512();
            _mm512_storeu_si512(to + d, _mm512_or_si512(wide(rows + d), second));
        }
}
#else
#define HAS_BF16 0
#endif

#ifdef __AVX512VNNI__
#define HAS_INT8 1

// The format of its attention's products: bfloat16 where that multiplies much faster, in tile registers.
#ifdef __AMX_BF16__
typedef Bf16 Int8Maps;
#else
typedef Fp32 Int8Maps;
#endif
constexpr int64_t INT8_MAPS = Int8Maps::CELLS;

// Activations are 0 to 255, with a scale and a zero for each row; weights are -127 to 127, with a scale for each output.
// Sums are exact. Only linear layers are computed in this format.
struct Int8 {
    typedef uint8_t cell;
    typedef ivec sum;
    typedef Fp32 written;
    typedef Int8Maps maps;
    static constexpr int CELLS = 4;

    static ivec spread(const float* unit) {
        return reinterpret_cast<ivec>(_mm512_set1_epi32(*reinterpret_cast<const any_int*>(unit)));
    }
    static ivec add_product(ivec left, vec right, ivec sum) {
        return reinterpret_cast<ivec>(_mm512_dpbusd_epi32(
            reinterpret_cast<__m512i>(sum), reinterpret_cast<__m512i>(left), reinterpret_cast<__m512i>(right)));
    }

    // Rows (M, D) -> cells (M, D): row = scale (cell - zero). A row with NaN or infinities gets the scale NaN.
    static void quantize(const float* rows, int64_t M, int64_t D, float* units, float* scales, float* zeros) {
        uint8_t* out = reinterpret_cast<uint8_t*>(units);
        for (int64_t m = 0; m < M; m++, rows += D, out += D) {
            vec most = vec{}, least = vec{}, wrong = vec{};
            for (int64_t d = 0; d < D; d += W) {
                const vec value = load(rows + d);
                most = larger(most, value), least = smaller(least, value), wrong += value * 0.0f;
            }
            const float low = smallest(least), scale = (largest(most) - low) / 255.0f;
            const float inverse = scale > 0 ? 1.0f / scale : 0.0f, zero = std::nearbyint(-low * inverse);
            scales[m] = scale + total(wrong), zeros[m] = zero;
            for (int64_t d = 0; d < D; d += W) {
                const vec value = fused(load(rows + d), inverse, ::spread(zero));
                const __m512i whole = _mm512_max_epi32(_mm512_cvtps_epi32(reinterpret_cast<__m512>(value)), __m512i{});
                _mm_storeu_si128(reinterpret_cast<__m128i*>(out + d), _mm512_cvtusepi32_epi8(whole));
            }
        }
    }
};
#else
#define HAS_INT8 0
constexpr int64_t INT8_MAPS = 1;
#endif

// Mean 0 and variance 1 for each of M rows.
template <class T>
void normalize(const float* rows, int64_t M, int64_t D, float eps, typename T::cell* out) {
    for (int64_t m = 0; m < M; m++, rows += D, out += D) {
        vec sum = vec{}, squares = vec{};
        for (int64_t d = 0; d < D; d += W) sum += load(rows + d);
        const float mean = total(sum) / D;
        for (int64_t d = 0; d < D; d += W) {
            const vec centred = load(rows + d) - mean;
            squares = fused(centred, centred, squares);
        }
        const float scale = 1.0f / std::sqrt(total(squares) / D + eps);
        for (int64_t d = 0; d < D; d += W) T::store(out + d, (load(rows + d) - mean) * scale);
    }
}

}  // namespace
