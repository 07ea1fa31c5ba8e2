// Talking-heads attention of a training step in float32: forward, and backward with the maps recomputed.
// native.py compiles and calls this; heads.py computes the same in PyTorch. On request the factors of products are
// rounded to bfloat16, for tile registers; mixings, softmax and all that is stored stay in float32.
//
// An item is a range of rows of one image. Its maps exist for MAP_ROWS rows of all heads at a time, and stay in the
// core's cache. Products that sum over rows take transposed matrices, so that each reads memory in order:
//
//     scores = Q K'    weights = softmax(before scores)    mixed = after weights + bias    read = mixed V
//     grad_mixed = G V'    grad_V' = G' mixed    grad_Q = grad_scores K    grad_K' = Q' grad_scores
//
// where G is the gradient of `read`. Sums over rows are kept per item, so a result is the same whichever thread has it.
//
// Letters: B images, N patches, A heads, E channels of a head, D = A E, M rows, W floats of a vector.

#ifdef _OPENMP
#include <omp.h>
#endif

#include "mixing.h"
#include "products.h"

namespace {

constexpr int64_t MAP_ROWS = 32;

struct Sizes {
    int64_t B, N, A, E, groups;  // groups: items per image
    bool rounds;                 // products in bfloat16

    int64_t D() const { return A * E; }
    int64_t columns() const { return round_up(N, W); }  // of a map
    int64_t head_step() const { return MAP_ROWS * columns(); }
    int64_t maps() const { return A * head_step(); }
    int64_t sums() const { return 2 * A * A + A; }  // gradients of both mixings and of the bias
    // Floats of a thread's own room, and of an item's grad_K' and grad_V'.
    int64_t read_room() const { return D() * columns() + maps() + units(); }
    int64_t backward_room() const { return 4 * D() * columns() + 3 * maps() + A * columns() + sums() * W + units(); }
    int64_t transposed_grads() const { return 2 * D() * columns(); }
    // Of the left and of the right factor of a product in bfloat16, two numbers each.
    int64_t left_units() const { return MAP_ROWS / 2 * (columns() + E) + W; }
    int64_t units() const { return rounds ? left_units() + (E + MAP_ROWS) / 2 * columns() : 0; }
};

struct Item {
    int64_t image, first, last;  // rows
    Item(const Sizes& s, int64_t number)
        : image(number / s.groups), first(number % s.groups * s.N / s.groups),
          last((number % s.groups + 1) * s.N / s.groups) {}
};

// step(row, M) for blocks of at most MAP_ROWS rows: whole ones and a rest for tile registers, else of nearly equal size.
template <class Step>
void in_blocks(const Sizes& s, const Item& item, Step step) {
    int64_t row = item.first;
    for (int64_t left = (item.last - row + MAP_ROWS - 1) / MAP_ROWS; left > 0; left--) {
        const int64_t rows = item.last - row, equal = (rows + left - 1) / left, whole = rows < MAP_ROWS ? rows : MAP_ROWS;
        const int64_t M = s.rounds ? whole : equal;
        step(row, M);
        row += M;
    }
}

// A matrix for each head: the first one, and how many floats there are from a row, and from a head, to the next.
template <class Float>
struct Heads {
    Float* at;
    int64_t step, head_step;
};

#if HAS_TILES
// Rows (M, K), rounded, so many units each. What follows the rows in memory is read up to a whole vector.
void round_rows(const float* rows, int64_t step, int64_t M, int64_t units, float* to) {
    for (int64_t m = 0; m < M; m++, rows += step, to += units)
        for (int64_t u = 0; u < units; u += W / 2) Bf16::store(reinterpret_cast<uint16_t*>(to + u), load(rows + 2 * u));
}

// Rows (K, O), rounded, two in a row of units (O); after an odd last row 0.
void round_pairs(const float* rows, int64_t step, int64_t K, int64_t O, float* to) {
    const auto rounded = [](vec value) {
        return _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(value))));
    };
    for (int64_t k = 0; k < K; k += 2, rows += 2 * step, to += O)
        for (int64_t o = 0; o < O; o += W) {
            const __m512i second = rounded(k + 1 < K ? load(rows + step + o) : vec{});
            _mm512_storeu_si512(to + o, _mm512_or_si512(rounded(load(rows + o)), _mm512_slli_epi32(second, 16)));
        }
}
#endif

// out (M, O) = left (M, K) right (K, O), of each head.
struct Products {
    int64_t A;
    float *left_units, *right_units;  // room for the factors in bfloat16; null: products are in float32

    Products(const Sizes& s, float* room)
        : A(s.A), left_units(s.rounds ? room : nullptr), right_units(room + s.left_units()) {}

    void operator()(Heads<const float> left, Heads<const float> right, Heads<float> out, int64_t M, int64_t K, int64_t O,
                    Out what = Out::floats) const {
        for (int64_t a = 0; a < A; a++) {
            const float *const rows = left.at + a * left.head_step, *const columns = right.at + a * right.head_step;
            float* const to = out.at + a * out.head_step;
#if HAS_TILES
            if (left_units) {
                const int64_t units = (K + 1) / 2;
                round_rows(rows, left.step, M, units, left_units);
                round_pairs(columns, right.step, K, O, right_units);
                multiply<Bf16>({left_units, right_units, nullptr, to, units, O, out.step, units, what}, M, O);
                continue;
            }
#endif
            multiply<Fp32>({rows, columns, nullptr, to, left.step, right.step, out.step, K, what}, M, O);
        }
    }
};

// to (D, columns) = rows' (N, D), zero from column N on.
void turn_rows(const float* rows, int64_t step, int64_t N, int64_t D, float* to, int64_t columns) {
    float rest[W * W] = {};
    for (int64_t d = 0; d < D; d += W) {
        int64_t n = 0;
        for (; n + W <= N; n += W) turn_square(rows + n * step + d, step, to + d * columns + n, columns);
        for (int64_t i = 0; n + i < N; i++) store(rest + i * W, load(rows + (n + i) * step + d));
        if (n < N) turn_square(rest, W, to + d * columns + n, columns);
    }
}

// to (N, D) = rows' (D, columns); rows of `to` are `step` floats apart.
void turn_back(const float* rows, int64_t columns, int64_t N, int64_t D, float* to, int64_t step) {
    float rest[W * W];
    for (int64_t d = 0; d < D; d += W) {
        int64_t n = 0;
        for (; n + W <= N; n += W) turn_square(rows + d * columns + n, columns, to + n * step + d, step);
        if (n < N) turn_square(rows + d * columns + n, columns, rest, W);
        for (int64_t i = 0; n + i < N; i++) store(to + (n + i) * step + d, load(rest + i * W));
    }
}

// The attention output of an item.
void read_item(const Sizes& s, const float* qkv, const Mixing& mixing, float* out, const Item& item, float* room) {
    const int64_t D = s.D(), step = 3 * D, columns = s.columns();
    const float* const image = qkv + item.image * s.N * step;
    float *const keys = room, *const maps = keys + D * columns;
    const Products multiply_heads(s, maps + s.maps());
    const Tiles tiles;
    turn_rows(image + D, step, s.N, D, keys, columns);
    in_blocks(s, item, [&](int64_t row, int64_t M) {
        float* const read = out + (item.image * s.N + row) * D;
        multiply_heads({image + row * step, step, s.E}, {keys, columns, s.E * columns},
                       {maps, columns, s.head_step()}, M, s.E, columns);
        for (int64_t m = 0; m < M; m++) mix<Fp32>(maps + m * columns, s.head_step(), s.N, s.A, mixing);
        multiply_heads({maps, columns, s.head_step()}, {image + 2 * D, step, s.E}, {read, D, s.E}, M, s.N, s.E);
    });
}

// Sums over an item, a vector of partial sums for each: grad_before (A, A), grad_after (A, A), grad_bias (A).
struct Sums {
    float *before, *after, *bias;
    Sums(float* at, int64_t A) : before(at), after(at + A * A * W), bias(at + 2 * A * A * W) {}
};

// One row of the maps of all heads.
struct Row {
    float *scores, *mixed, *grad;  // grad: on entry of `mixed`, on return of `scores`
    int64_t step;                  // from a head to the next
    float* weights;                // own room, (A, columns)
};

// sums[a][b] += left[a] right[b], the product of rows of heads, a square of P x P heads at a time.
template <int P>
void add_outer(const float* left, int64_t left_step, const float* right, int64_t right_step, int64_t columns, int A, float* sums) {
    for (int a = 0; a < A; a += P)
        for (int b = 0; b < A; b += P) {
            vec sum[P][P];
            for (int i = 0; i < P; i++)
                for (int j = 0; j < P; j++) sum[i][j] = load(sums + ((a + i) * A + b + j) * W);
            for (int64_t n = 0; n < columns; n += W) {
                vec values[P];
                for (int j = 0; j < P; j++) values[j] = load(right + (b + j) * right_step + n);
                for (int i = 0; i < P; i++) {
                    const vec factor = load(left + (a + i) * left_step + n);
                    for (int j = 0; j < P; j++) sum[i][j] = fused(factor, values[j], sum[i][j]);
                }
            }
            for (int i = 0; i < P; i++)
                for (int j = 0; j < P; j++) store(sums + ((a + i) * A + b + j) * W, sum[i][j]);
        }
}

// weights = softmax(before scores), zero from column N on; mixed = after weights + bias.
template <int HEADS>
void weigh_row(const Row& row, int64_t N, int64_t columns, int A, const Mixing& mixing) {
    vec most[MAX_HEADS], in[MAX_HEADS];
    for (int a = 0; a < A; a++) most[a] = spread(-3.0e38f);
    for (int64_t n = 0; n < N; n += W) {
        for (int a = 0; a < A; a++) in[a] = load(row.scores + a * row.step + n);
        for (int b = 0; b < A; b++) {
            vec sum = in[0] * mixing.before[b * A];
            for (int a = 1; a < A; a++) sum = fused(in[a], mixing.before[b * A + a], sum);
            if (n + W > N) sum = LANES < static_cast<int32_t>(N - n) ? sum : spread(-3.0e38f);
            most[b] = larger(most[b], sum);
            store(row.weights + b * columns + n, sum);
        }
    }
    float scale[MAX_HEADS];
    for (int b = 0; b < A; b++) {
        float* const head = row.weights + b * columns;
        const float top = largest(most[b]);
        vec sum = vec{};
        for (int64_t n = 0; n < N; n += W) {
            vec power = exponential(load(head + n) - top);
            if (n + W > N) power = LANES < static_cast<int32_t>(N - n) ? power : vec{};
            store(head + n, power);
            sum += power;
        }
        scale[b] = 1.0f / total(sum);
    }
    for (int64_t n = 0; n < N; n += W) {
        for (int a = 0; a < A; a++) store(row.weights + a * columns + n, in[a] = load(row.weights + a * columns + n) * scale[a]);
        for (int b = 0; b < A; b++) {
            vec sum = spread(mixing.bias[b]);
            for (int a = 0; a < A; a++) sum = fused(in[a], mixing.after[b * A + a], sum);
            store(row.mixed + b * row.step + n, sum);
        }
    }
}

// The maps of a row again, the gradient of its scores, and its part of the sums.
template <int HEADS>
void backward_row(const Row& row, int64_t N, int64_t heads, const Mixing& mixing, const Sums& sums) {
    constexpr int P = HEADS == 0 ? 1 : HEADS % 4 == 0 ? 4 : HEADS % 3 == 0 ? 3 : 1;
    const int A = HEADS ? HEADS : static_cast<int>(heads);
    const int64_t columns = round_up(N, W);
    weigh_row<HEADS>(row, N, columns, A, mixing);
    add_outer<P>(row.grad, row.step, row.weights, columns, columns, A, sums.after);
    vec in[MAX_HEADS], dots[MAX_HEADS], bias[MAX_HEADS];
    for (int a = 0; a < A; a++) dots[a] = vec{}, bias[a] = load(sums.bias + a * W);
    for (int64_t n = 0; n < N; n += W) {  // the gradient of the weights
        for (int a = 0; a < A; a++) bias[a] += in[a] = load(row.grad + a * row.step + n);
        for (int b = 0; b < A; b++) {
            vec sum = in[0] * mixing.after[b];
            for (int a = 1; a < A; a++) sum = fused(in[a], mixing.after[a * A + b], sum);
            dots[b] = fused(sum, load(row.weights + b * columns + n), dots[b]);
            store(row.grad + b * row.step + n, sum);
        }
    }
    float dot[MAX_HEADS];
    for (int a = 0; a < A; a++) dot[a] = total(dots[a]), store(sums.bias + a * W, bias[a]);
    for (int64_t n = 0; n < N; n += W) {  // of the mixed scores, in place of the weights; of the scores
        for (int a = 0; a < A; a++) {
            float* const weight = row.weights + a * columns + n;
            store(weight, in[a] = load(weight) * (load(row.grad + a * row.step + n) - dot[a]));
        }
        for (int b = 0; b < A; b++) {
            vec sum = in[0] * mixing.before[b];
            for (int a = 1; a < A; a++) sum = fused(in[a], mixing.before[a * A + b], sum);
            store(row.grad + b * row.step + n, sum);
        }
    }
    add_outer<P>(row.weights, columns, row.scores, row.step, columns, A, sums.before);
}

using BackwardRow = void (*)(const Row&, int64_t, int64_t, const Mixing&, const Sums&);

BackwardRow backward_row_of(int64_t A) {
    switch (A) {
        case 4: return backward_row<4>;
        case 6: return backward_row<6>;
        case 8: return backward_row<8>;
        case 16: return backward_row<16>;
        default: return backward_row<0>;
    }
}

// The gradients of an item: of its queries, of the mixings (sums), and its part of those of keys and values, transposed.
void backward_item(const Sizes& s, const float* grad, const float* qkv, const Mixing& mixing, float* grad_qkv,
                   float* grad_mixing, float* grad_keys, const Item& item, float* room) {
    const int64_t A = s.A, E = s.E, N = s.N, D = s.D(), step = 3 * D, columns = s.columns(), size = D * columns;
    const float *const image = qkv + item.image * N * step, *const grad_image = grad + item.image * N * D;
    float *const turned = room, *const turned_grad = turned + 3 * size, *const scores = turned_grad + size;
    float *const mixed = scores + s.maps(), *const grads = mixed + s.maps(), *const weights = grads + s.maps();
    const Sums sums(weights + A * columns, A);
    const Products multiply_heads(s, sums.before + s.sums() * W);
    const Tiles tiles;
    const BackwardRow backward = backward_row_of(A);
    const int64_t head = E * columns, map = s.head_step();
    turn_rows(image, step, N, 3 * D, turned, columns);
    turn_rows(grad_image, D, N, D, turned_grad, columns);
    std::memset(grad_keys, 0, 2 * size * sizeof(float));
    std::memset(sums.before, 0, s.sums() * W * sizeof(float));
    in_blocks(s, item, [&](int64_t row, int64_t M) {
        float* const grad_queries = grad_qkv + (item.image * N + row) * step;
        multiply_heads({image + row * step, step, E}, {turned + size, columns, head}, {scores, columns, map}, M, E, columns);
        multiply_heads({grad_image + row * D, D, E}, {turned + 2 * size, columns, head}, {grads, columns, map}, M, E, columns);
        for (int64_t m = 0, at = 0; m < M; m++, at += columns)
            backward({scores + at, mixed + at, grads + at, map, weights}, N, A, mixing, sums);
        multiply_heads({grads, columns, map}, {image + D, step, E}, {grad_queries, step, E}, M, N, E);
        multiply_heads({turned + row, columns, head}, {grads, columns, map}, {grad_keys, columns, head}, E, M, columns, Out::add);
        multiply_heads({turned_grad + row, columns, head}, {mixed, columns, map}, {grad_keys + size, columns, head}, E, M, columns, Out::add);
    });
    for (int64_t i = 0; i < s.sums(); i++) grad_mixing[i] = total(load(sums.before + i * W));
}

// The gradients of an image's keys and values from its items' parts.
void join_items(const Sizes& s, float* parts, float* grad_qkv, int64_t image) {
    const int64_t D = s.D(), step = 3 * D, columns = s.columns(), size = s.transposed_grads();
    for (int64_t group = 1; group < s.groups; group++)
        for (int64_t i = 0; i < size; i += W) store(parts + i, load(parts + i) + load(parts + group * size + i));
    float* const to = grad_qkv + image * s.N * step + D;
    turn_back(parts, columns, s.N, 2 * D, to, step);
}

int64_t number_of_groups(int64_t B, int64_t N, int64_t threads) {
    const int64_t wanted = (threads + B - 1) / B, most = (N + MAP_ROWS - 1) / MAP_ROWS;
    return wanted < most ? wanted : most;
}

int64_t self() {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

// Whether products are in bfloat16: if that is wanted, and there are tile registers, which multiply it much faster.
bool rounds(int64_t wanted) { return wanted && may_use_tiles(); }

}  // namespace

// Items of a call, each with its own gradients of the mixings; 0 for sizes that this does not support.
extern "C" int64_t heads_items(int64_t B, int64_t N, int64_t A, int64_t E, int64_t threads) {
    const bool suits = B > 0 && N > 0 && A > 0 && A <= MAX_HEADS && E % W == 0;
    return suits ? B * number_of_groups(B, N, threads) : 0;
}

// Floats of room that a call needs. bf16: whether the factors of products may be rounded to bfloat16.
extern "C" int64_t heads_buffer(
    int64_t B, int64_t N, int64_t A, int64_t E, int64_t threads, int64_t bf16, int64_t backward) {
    const Sizes s{B, N, A, E, number_of_groups(B, N, threads), rounds(bf16)};
    const int64_t parts = s.groups == 1 ? threads : B * s.groups;
    return backward ? threads * s.backward_room() + parts * s.transposed_grads() : threads * s.read_room();
}

// qkv (B, N, 3 D) -> out (B, N, D). The scale of the scores is part of `before`.
extern "C" void heads_read(
    const float* qkv, const float* before, const float* after, const float* bias, float* out, float* room, int64_t B,
    int64_t N, int64_t A, int64_t E, int64_t threads, int64_t bf16) {
    const Sizes s{B, N, A, E, number_of_groups(B, N, threads), rounds(bf16)};
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t i = 0; i < B * s.groups; i++)
        read_item(s, qkv, {before, after, bias}, out, Item(s, i), room + self() * s.read_room());
}

// grad (B, N, D), qkv (B, N, 3 D) -> grad_qkv, and of each item grad_before (A, A), grad_after (A, A), grad_bias (A).
extern "C" void heads_backward(
    const float* grad, const float* qkv, const float* before, const float* after, const float* bias, float* grad_qkv,
    float* grad_mixings, float* room, int64_t B, int64_t N, int64_t A, int64_t E, int64_t threads, int64_t bf16) {
    const Sizes s{B, N, A, E, number_of_groups(B, N, threads), rounds(bf16)};
    float* const parts = room + threads * s.backward_room();
#pragma omp parallel num_threads(threads)
    {
        float* const own = room + self() * s.backward_room();
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < B * s.groups; i++) {
            float* const part = parts + (s.groups == 1 ? self() : i) * s.transposed_grads();
            backward_item(s, grad, qkv, {before, after, bias}, grad_qkv, grad_mixings + i * s.sums(), part, Item(s, i), own);
            if (s.groups == 1) join_items(s, part, grad_qkv, i);
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < (s.groups == 1 ? 0 : B); i++)
            join_items(s, parts + i * s.groups * s.transposed_grads(), grad_qkv, i);
    }
}
