// Talking-heads attention without gradients, float32: product, mixing, softmax, mixing, product, a few rows of all
// heads at a time. The maps of those rows never leave the core's own cache. native.py compiles and calls this;
// blocks.py is the same function in PyTorch.
//
// Letters: B images, N patches, A heads, E channels of a head, R rows of a block, W floats of a vector.

#include <cstdint>
#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

constexpr int W = 16;
constexpr int R = 8;       // rows of a block; with three vectors a row, 24 sums stay in registers
constexpr int TILE = 3;    // vectors of a row that are summed at once
constexpr int MAX_HEADS = 16;

typedef float vec __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * W), aligned(4), may_alias));

inline vec load(const float* from) { return *reinterpret_cast<const vec*>(from); }
inline void store(float* to, vec value) { *reinterpret_cast<vec*>(to) = value; }
inline vec spread(float value) { return value - vec{}; }
inline vec larger(vec a, vec b) { return a > b ? a : b; }

// e^x for x <= 0, within 2 units in the last place; 0 below -87.
inline vec exponential(vec x) {
    const vec shifter = spread(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
    x = larger(x, spread(-87.0f));
    vec whole = x * 1.44269504f + shifter;
    ivec bits = reinterpret_cast<ivec&>(whole) << 23;
    whole -= shifter;
    vec rest = x - whole * 0.693359375f;
    rest -= whole * -2.12194440e-4f;
    vec sum = spread(1.9875691500e-4f);
    sum = sum * rest + 1.3981999507e-3f;
    sum = sum * rest + 8.3334519073e-3f;
    sum = sum * rest + 4.1665795894e-2f;
    sum = sum * rest + 1.6666665459e-1f;
    sum = sum * rest + 5.0000001201e-1f;
    sum = sum * (rest * rest) + rest + 1.0f;
    ivec result = reinterpret_cast<ivec&>(sum) + bits;
    return reinterpret_cast<vec&>(result);
}

// to[r][:] = q[r] k for the columns of NV vectors. k lies as (E, columns).
template <int NV>
void scores_tile(const float* const q[R], const float* k_EN, int E, int64_t stride, float* to, int64_t row_stride) {
    vec sum[R][NV];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < NV; v++) sum[r][v] = vec{};
    for (int e = 0; e < E; e++) {
        vec key[NV];
        for (int v = 0; v < NV; v++) key[v] = load(k_EN + e * stride + v * W);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const vec query = spread(q[r][e]);
#pragma GCC unroll 3
            for (int v = 0; v < NV; v++) sum[r][v] += query * key[v];
        }
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < NV; v++) store(to + r * row_stride + v * W, sum[r][v]);
}

// out[r][:] = maps[r] v, of one head: EV vectors wide.
template <int EV>
void read_tile(const float* maps, int64_t row_stride, const float* v_NE, int64_t stride, int N, float* const out[R], int rows) {
    vec sum[R][EV];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < EV; v++) sum[r][v] = vec{};
    for (int n = 0; n < N; n++) {
        vec value[EV];
        for (int v = 0; v < EV; v++) value[v] = load(v_NE + n * stride + v * W);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const vec weight = spread(maps[r * row_stride + n]);
#pragma GCC unroll 4
            for (int v = 0; v < EV; v++) sum[r][v] += weight * value[v];
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < EV; v++) store(out[r] + v * W, sum[r][v]);
}

void read_any(int EV, const float* maps, int64_t row_stride, const float* v_NE, int64_t stride, int N, float* const out[R], int rows) {
    switch (EV) {
        case 1: return read_tile<1>(maps, row_stride, v_NE, stride, N, out, rows);
        case 2: return read_tile<2>(maps, row_stride, v_NE, stride, N, out, rows);
        case 3: return read_tile<3>(maps, row_stride, v_NE, stride, N, out, rows);
        default: return read_tile<4>(maps, row_stride, v_NE, stride, N, out, rows);
    }
}

// One row of all heads: mixed, softmax, mixed; in place. Columns N and beyond hold nothing of meaning afterwards.
// HEADS is A where it is known when this is compiled, so that loops unroll; else 0.
template <int HEADS>
void mix_row(float* row, int64_t head_stride, int N, int padded, int heads, const float* mix_l, const float* mix_w, const float* bias_w) {
    const int A = HEADS ? HEADS : heads;
    vec most[MAX_HEADS], in[MAX_HEADS];
    float scaled[MAX_HEADS * MAX_HEADS];
    const int whole = N / W * W;  // columns of full vectors
    for (int a = 0; a < A; a++) most[a] = spread(-3.0e38f);
    for (int n = 0; n < padded; n += W) {
        for (int a = 0; a < A; a++) in[a] = load(row + a * head_stride + n);
        for (int b = 0; b < A; b++) {
            vec sum = in[0] * mix_l[b * A];
            for (int a = 1; a < A; a++) sum += in[a] * mix_l[b * A + a];
            if (n >= whole)
                for (int i = 0; i < W; i++)
                    if (n + i >= N) sum[i] = -3.0e38f;
            most[b] = larger(most[b], sum);
            store(row + b * head_stride + n, sum);
        }
    }
    for (int b = 0; b < A; b++) {
        float top = most[b][0];
        for (int i = 1; i < W; i++) top = top > most[b][i] ? top : most[b][i];
        vec total = vec{};
        float* const head = row + b * head_stride;
        for (int n = 0; n < padded; n += W) {
            const vec power = exponential(load(head + n) - top);
            store(head + n, power);
            if (n < whole) total += power;
        }
        float sum = 0;
        for (int i = 0; i < W; i++) sum += total[i];
        for (int n = whole; n < N; n++) sum += head[n];
        for (int a = 0; a < A; a++) scaled[a * A + b] = mix_w[a * A + b] / sum;
    }
    for (int n = 0; n < padded; n += W) {
        for (int a = 0; a < A; a++) in[a] = load(row + a * head_stride + n);
        for (int b = 0; b < A; b++) {
            vec sum = in[0] * scaled[b * A] + bias_w[b];
            for (int a = 1; a < A; a++) sum += in[a] * scaled[b * A + a];
            store(row + b * head_stride + n, sum);
        }
    }
}

void mix_any(float* row, int64_t head_stride, int N, int padded, int A, const float* mix_l, const float* mix_w, const float* bias_w) {
    switch (A) {
        case 4: return mix_row<4>(row, head_stride, N, padded, A, mix_l, mix_w, bias_w);
        case 6: return mix_row<6>(row, head_stride, N, padded, A, mix_l, mix_w, bias_w);
        case 8: return mix_row<8>(row, head_stride, N, padded, A, mix_l, mix_w, bias_w);
        default: return mix_row<0>(row, head_stride, N, padded, A, mix_l, mix_w, bias_w);
    }
}

struct Call {
    const float *qkv, *mix_l, *mix_w, *bias_w;
    float *out, *keys, *maps;
    int64_t N, A, E, padded;
};

// keys (A, E, padded) of an image's head, zeros behind its N columns.
void turn_keys(const Call& c, int64_t image, int64_t head) {
    const int64_t D = c.A * c.E;
    const float* from = c.qkv + image * c.N * 3 * D + D + head * c.E;
    float* to = c.keys + (image * c.A + head) * c.E * c.padded;
    for (int64_t start = 0; start < c.padded; start += W)
        for (int64_t e = 0; e < c.E; e++)
            for (int64_t n = start; n < start + W; n++) to[e * c.padded + n] = n < c.N ? from[n * 3 * D + e] : 0.0f;
}

// Rows `first` and up to R - 1 more of an image.
void attend_rows(const Call& c, int64_t image, int64_t first, float* maps) {
    const int64_t D = c.A * c.E, row_stride = c.padded, head_stride = R * c.padded;
    const int rows = static_cast<int>(c.N - first < R ? c.N - first : R);
    const float* const qkv = c.qkv + image * c.N * 3 * D;
    for (int64_t a = 0; a < c.A; a++) {
        const float* q[R];
        // Behind the last row the last is computed again, and left where it is.
        for (int r = 0; r < R; r++) q[r] = qkv + (first + (r < rows ? r : rows - 1)) * 3 * D + a * c.E;
        const float* const keys = c.keys + (image * c.A + a) * c.E * c.padded;
        float* const to = maps + a * head_stride;
        int64_t n = 0;
        for (; n + TILE * W <= c.padded; n += TILE * W) scores_tile<TILE>(q, keys + n, c.E, c.padded, to + n, row_stride);
        if (c.padded - n == 2 * W) scores_tile<2>(q, keys + n, c.E, c.padded, to + n, row_stride);
        if (c.padded - n == W) scores_tile<1>(q, keys + n, c.E, c.padded, to + n, row_stride);
    }
    for (int r = 0; r < rows; r++)
        mix_any(maps + r * row_stride, head_stride, c.N, c.padded, c.A, c.mix_l, c.mix_w, c.bias_w);
    for (int64_t a = 0; a < c.A; a++) {
        float* out[R];
        for (int r = 0; r < R; r++) out[r] = c.out + (image * c.N + first + (r < rows ? r : 0)) * D + a * c.E;
        read_any(c.E / W, maps + a * head_stride, row_stride, qkv + 2 * D + a * c.E, 3 * D, c.N, out, rows);
    }
}

}  // namespace

// Floats of room that a call needs for the turned keys, and for the maps of each thread.
extern "C" int64_t talking_heads_keys(int64_t B, int64_t N, int64_t A, int64_t E) { return B * A * E * ((N + W - 1) / W * W); }
extern "C" int64_t talking_heads_maps(int64_t N, int64_t A) { return A * R * ((N + W - 1) / W * W); }

// qkv (B, N, 3, A, E), scaled already -> out (B, N, A, E). E is a multiple of 16, at most 64; A at most 16.
extern "C" void talking_heads(
    const float* qkv, const float* mix_l, const float* mix_w, const float* bias_w, float* out, float* keys, float* maps,
    int64_t B, int64_t N, int64_t A, int64_t E, int64_t threads) {
    const Call call{qkv, mix_l, mix_w, bias_w, out, keys, maps, N, A, E, (N + W - 1) / W * W};
    const int64_t blocks = (N + R - 1) / R, room = talking_heads_maps(N, A);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < B * A; i++) turn_keys(call, i / A, i % A);
        int64_t self = 0;
#ifdef _OPENMP
        self = omp_get_thread_num();
#endif
#pragma omp for schedule(static)
        for (int64_t i = 0; i < B * blocks; i++) attend_rows(call, i / blocks, i % blocks * R, maps + self * room);
    }
}
