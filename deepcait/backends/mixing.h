// Head mixing around the softmax, for one row of the maps of all heads.
//
// Letters: N patches, A heads, W floats of a vector.

#pragma once

#include "arithmetic.h"

namespace {

constexpr int MAX_HEADS = 16;

struct Mixing {
    const float *before, *after, *bias;  // (A, A), (A, A), (A)
};

// Mixed, softmax, mixed, in place; what is left of a head's row are cells. Columns N and beyond are there, up to a whole
// vector, and hold nothing of meaning.
// HEADS is A where it is known when this is compiled, so that loops unroll; else 0.
template <class T, int HEADS>
void mix_row(float* row, int64_t head_step, int64_t N, int64_t heads, const Mixing& mixing) {
    const int A = HEADS ? HEADS : static_cast<int>(heads);
    vec most[MAX_HEADS], in[MAX_HEADS];
    float scaled[MAX_HEADS * MAX_HEADS];
    for (int a = 0; a < A; a++) most[a] = spread(-3.0e38f);
    for (int64_t n = 0; n < N; n += W) {
        for (int a = 0; a < A; a++) in[a] = load(row + a * head_step + n);
        for (int b = 0; b < A; b++) {
            vec sum = in[0] * mixing.before[b * A];
            for (int a = 1; a < A; a++) sum = fused(in[a], mixing.before[b * A + a], sum);
            if (n + W > N) sum = LANES < static_cast<int32_t>(N - n) ? sum : spread(-3.0e38f);
            most[b] = larger(most[b], sum);
            store(row + b * head_step + n, sum);
        }
    }
    for (int b = 0; b < A; b++) {
        float* const head = row + b * head_step;
        const float top = largest(most[b]);
        vec sum = vec{};
        for (int64_t n = 0; n < N; n += W) {
            const vec power = exponential(load(head + n) - top);
            store(head + n, power);
            sum += power;  // beyond N e^-64, nothing beside the largest, which is 1
        }
        const float scale = 1.0f / total(sum);
        for (int a = 0; a < A; a++) scaled[a * A + b] = mixing.after[a * A + b] * scale;
    }
    for (int64_t n = 0; n < N; n += W) {
        for (int a = 0; a < A; a++) in[a] = load(row + a * head_step + n);
        for (int b = 0; b < A; b++) {
            vec sum = fused(in[0], scaled[b * A], spread(mixing.bias[b]));
            for (int a = 1; a < A; a++) sum = fused(in[a], scaled[b * A + a], sum);
            // A cell is no longer than a float: what is written here has been read.
            T::store(reinterpret_cast<typename T::cell*>(row + b * head_step) + n, sum);
        }
    }
}

template <class T>
void mix(float* row, int64_t head_step, int64_t N, int64_t A, const Mixing& mixing) {
    switch (A) {
        case 4: return mix_row<T, 4>(row, head_step, N, A, mixing);
        case 6: return mix_row<T, 6>(row, head_step, N, A, mixing);
        case 8: return mix_row<T, 8>(row, head_step, N, A, mixing);
        case 16: return mix_row<T, 16>(row, head_step, N, A, mixing);
        default: return mix_row<T, 0>(row, head_step, N, A, mixing);
    }
}

}  // namespace
