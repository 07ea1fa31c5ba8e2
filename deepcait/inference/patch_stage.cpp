// The patch stage of a folded CaiT without gradients: all blocks in one call, on packed weights. Products are computed
// in the number format T (arithmetic.h), the attention's in T::maps; norms, mixing, softmax, GELU and the residual stream
// in float32.
// native.py compiles and calls this; fold.py is the same function in PyTorch.
//
// A chunk of rows passes through everything that needs no other row, and stays in the core's cache on the way. Of an
// image only queries, keys and values are whole; of the attention's maps there are MAP_ROWS rows of all heads.
// Images are shared out among threads; those that are left over are shared out by rows.
//
// Letters: B images, N patches, A heads, E channels of a head, D = A E, H hidden channels of the MLP, L blocks, M rows.

#ifdef _OPENMP
#include <omp.h>
#endif

#include "mixing.h"
#include "products.h"

namespace {

constexpr int64_t CHUNK = 200;    // rows of a chunk, at most
constexpr int64_t MAP_ROWS = 32;  // rows whose maps are made at a time, at most

// Where images are fewer than threads, a thread has some rows of each and needs room for no more.
int64_t rows_of_chunk(int64_t B, int64_t N, int64_t threads) {
    const int64_t rows = B < threads ? (B * N + threads - 1) / threads : N;
    return rows < CHUNK ? round_up(rows, 2) : CHUNK;  // even: two rows may make a unit
}

struct Sizes {
    int64_t N, A, E, H;
    int64_t chunk;  // rows that go through a layer before the next layer begins, at most
    int64_t cells;  // in a unit
    float eps = 0;

    int64_t D() const { return A * E; }
    int64_t wide() const { return H > D() ? H : D(); }
    int64_t columns() const { return round_up(N, W); }  // of a map
    bool scaled() const { return cells == 4; }  // int8, whose rows and columns have scales
    int64_t map_cells() const { return scaled() ? INT8_MAPS : cells; }  // in a unit of what the attention multiplies
    int64_t height() const { return round_up(chunk, 16); }  // of what a layer reads: tile registers read so many rows
    int64_t pairs() const { return (N + map_cells() - 1) / map_cells(); }  // units of a column of values
    // Units of a block's weights, of an image's queries, keys and values, of a thread's own room.
    int64_t block() const {
        const int64_t scales = scaled() ? 2 * (5 * D() + H) : 0;
        return round_up(D() * (4 * D() + 2 * H) / cells + scales + 3 * D() + H + 2 * A * A + A, W);
    }
    int64_t image() const { return (N * D() + columns() * D()) / map_cells() + pairs() * D(); }
    int64_t rows() const { return scaled() ? wide() / cells + wide() + 2 : (2 * D() + wide()) / cells; }
    int64_t room() const { return round_up(height() * rows(), W) + A * MAP_ROWS * columns(); }
};

struct Linear {
    const float *weight, *bias, *scales, *sums;  // panels; of each output
    int64_t K, O;
};

// A block's weights, as patch_stage_pack lays them one behind the other.
struct Block {
    Linear q, k, v, proj, fc1, fc2;
    Mixing mixing;

    Block(const float* at, const Sizes& s) {
        const auto take = [&](int64_t count) { return (at += count) - count; };
        const auto layer = [&](int64_t O, int64_t K, bool has_bias) {
            Linear to{take(O * K / s.cells), nullptr, nullptr, nullptr, K, O};
            if (s.scaled()) to.scales = take(O), to.sums = take(O);
            if (has_bias) to.bias = take(O);
            return to;
        };
        const int64_t D = s.D();
        q = layer(D, D, true), k = layer(D, D, false), v = layer(D, D, false), proj = layer(D, D, true);
        fc1 = layer(s.H, D, true), fc2 = layer(D, s.H, true);
        mixing.before = take(s.A * s.A), mixing.after = take(s.A * s.A), mixing.bias = take(s.A);
    }
};

struct Image {
    float *queries, *values, *keys;  // cells (N, D), units (pairs, D) along N, units (D / cells, columns) along D
    Image(float* at, const Sizes& s)
        : queries(at), values(at + s.N * s.D() / s.map_cells()), keys(values + s.pairs() * s.D()) {}
};

struct Room {
    float *normal, *read, *hidden, *maps;  // cells (M, D), (M, D), (M, H) or (M, D); floats (A, MAP_ROWS, columns)
    // int8: the cells of one layer's input, (M, D) or (M, H), are in `normal`; what was read and the hidden layer are
    // floats, in the same place.
    float *scales, *zeros;  // (M), of the rows in `normal`
    Room(float* at, const Sizes& s) : normal(at), maps(at + s.room() - s.A * MAP_ROWS * s.columns()) {
        read = normal + s.height() * (s.scaled() ? s.wide() : s.D()) / s.cells;
        hidden = s.scaled() ? read : read + s.height() * s.D() / s.cells;
        scales = hidden + s.height() * s.wide(), zeros = scales + s.height();
    }
};

template <class T>
typename T::cell* cells(float* units) {
    return reinterpret_cast<typename T::cell*>(units);
}

// Rows that a layer wrote, as cells for the next one.
template <class T>
const float* enter(float* rows, int64_t M, int64_t D, const Room& room) {
    if constexpr (T::CELLS == 4) {
        T::quantize(rows, M, D, room.normal, room.scales, room.zeros);
        return room.normal;
    } else {
        return rows;
    }
}

template <class T>
const float* normal(const Sizes& s, const float* tokens, int64_t M, const Room& room) {
    float* const to = T::CELLS == 4 ? room.hidden : room.normal;
    normalize<typename T::written>(tokens, M, s.D(), s.eps, cells<typename T::written>(to));
    return enter<T>(to, M, s.D(), room);
}

template <class T>
void linear(const Linear& w, const float* rows, int64_t M, const Room& room, void* out, Out what) {
    const int64_t K = w.K / T::CELLS;
    multiply<T>({rows, w.weight, w.bias, out, K, 0, w.O, K, what, room.scales, room.zeros, w.scales, w.sums}, M, w.O);
}

// Queries, keys and values of M rows of an image, from `first` on, which is even.
template <class T>
void ask(const Sizes& s, const Block& w, float* tokens, const Image& image, int64_t first, int64_t M, const Room& room) {
    constexpr int64_t CELLS = T::maps::CELLS;
    const int64_t D = s.D(), units = D / CELLS;
    const float* const rows = normal<T>(s, tokens + first * D, M, room);
    const auto to = [&](const Linear& layer, float* out) { linear<T>(layer, rows, M, room, out, Out::cells); };
    to(w.q, image.queries + first * units);
    to(w.k, room.hidden);
    turn(room.hidden, M, units, image.keys + first, s.columns());
    float* const values = image.values + first * units;
    if constexpr (CELLS == 1) {
        to(w.v, values);
    } else {
        to(w.v, room.hidden);
        pair_rows(cells<typename T::maps>(room.hidden), M, D, values);
    }
}

// What M rows read, at most MAP_ROWS, as floats or as cells; T is the format of the maps.
template <class T>
void attend(
    const Sizes& s, const Block& w, const Image& image, int64_t first, int64_t M, float* maps, float* read, Out what) {
    const int64_t D = s.D(), units = D / T::CELLS, E = s.E / T::CELLS, columns = s.columns();
    const int64_t head_step = MAP_ROWS * columns;
    for (int64_t a = 0; a < s.A; a++) {
        const float *queries = image.queries + first * units + a * E, *keys = image.keys + a * E * columns;
        multiply<T>({queries, keys, nullptr, maps + a * head_step, units, columns, columns, E, Out::floats}, M, columns);
    }
    for (int64_t m = 0; m < M; m++) mix<T>(maps + m * columns, head_step, s.N, s.A, w.mixing);
    for (int64_t a = 0; a < s.A; a++) {
        const float *of_head = maps + a * head_step, *values = image.values + a * s.E;
        float* const to = read + a * (what == Out::floats ? s.E : E);
        multiply<T>({of_head, values, nullptr, to, columns, D, D, s.pairs(), what}, M, s.E);
    }
}

// The rest of the block: attention and MLP of M rows, both added to the tokens.
template <class T>
void answer(const Sizes& s, const Block& w, float* tokens, const Image& image, int64_t first, int64_t M, const Room& room) {
    const int64_t D = s.D(), units = D / T::written::CELLS;
    const Out what = s.scaled() ? Out::floats : Out::cells;
    float* const own = tokens + first * D;
    for (int64_t m = 0; m < M; m += MAP_ROWS) {
        const int64_t rows = M - m < MAP_ROWS ? M - m : MAP_ROWS;
        attend<typename T::maps>(s, w, image, first + m, rows, room.maps, room.read + m * units, what);
    }
    linear<T>(w.proj, enter<T>(room.read, M, D, room), M, room, own, Out::add);
    linear<T>(w.fc1, normal<T>(s, own, M, room), M, room, room.hidden, Out::gelu);
    linear<T>(w.fc2, enter<T>(room.hidden, M, s.H, room), M, room, own, Out::add);
}

// Rows first to last in chunks of nearly equal size, even but for the last one.
template <class Step>
void in_chunks(const Sizes& s, int64_t first, int64_t last, Step step) {
    for (int64_t left = (last - first + s.chunk - 1) / s.chunk; left > 0; left--) {
        const int64_t rows = last - first, even = round_up((rows + left - 1) / left, 2), M = even < rows ? even : rows;
        step(first, M);
        first += M;
    }
}

template <class T>
void whole_image(const Sizes& s, const Block& w, float* tokens, const Image& image, const Room& room) {
    in_chunks(s, 0, s.N, [&](int64_t first, int64_t M) { ask<T>(s, w, tokens, image, first, M, room); });
    in_chunks(s, 0, s.N, [&](int64_t first, int64_t M) { answer<T>(s, w, tokens, image, first, M, room); });
}

// One step, `ask` or `answer`, of rows begin to end, counted through images that follow each other.
template <class Step>
void some_rows(const Sizes& s, const Block& w, float* tokens, float* images, int64_t begin, int64_t end, const Room& room, Step step) {
    for (int64_t i = begin / s.N; i * s.N < end; i++) {
        const int64_t start = i * s.N, first = begin > start ? begin - start : 0, last = end - start < s.N ? end - start : s.N;
        const Image image(images + i * s.image(), s);
        in_chunks(s, first, last, [&](int64_t row, int64_t M) { step(s, w, tokens + start * s.D(), image, row, M, room); });
    }
}

template <class T>
void pack_block(const float* const (&from)[11], const Sizes& s, float* to) {
    const auto [qkv, q_bias, proj, proj_bias, fc1, fc1_bias, fc2, fc2_bias, before, after, bias] = from;
    const int64_t A = s.A, D = s.D(), H = s.H;
    const auto copy = [&](const float* values, int64_t count) {
        for (int64_t i = 0; i < count; i++) *to++ = values[i];
    };
    const auto layer = [&](const float* weight, const float* bias_O, int64_t O, int64_t K) {
        to = pack<T>(weight, O, K, to);
        if (bias_O) copy(bias_O, O);
    };
    layer(qkv, q_bias, D, D), layer(qkv + D * D, nullptr, D, D), layer(qkv + 2 * D * D, nullptr, D, D);
    layer(proj, proj_bias, D, D), layer(fc1, fc1_bias, H, D), layer(fc2, fc2_bias, D, H);
    copy(before, A * A), copy(after, A * A), copy(bias, A);
}

// A thread's share of the rows of `rest` images: from the bound of its number to the next one's.
int64_t bound(int64_t number, int64_t team, int64_t rest, int64_t N) {
    const int64_t at = number * rest * N / team;
    return at - at % N % 2;  // two rows may make a unit
}

template <class T>
void run(float* tokens, const float* weights, float* room, int64_t B, int64_t L, const Sizes& s, int64_t threads) {
    const int64_t each = B / threads, rest = B % threads, floats = s.N * s.D();
    float* const own_images = room + threads * s.room();
    float* const shared_images = own_images + (each ? threads : 0) * s.image();
    float* const shared_tokens = tokens + each * threads * floats;
#pragma omp parallel num_threads(threads)
    {
        int64_t self = 0, team = 1;
#ifdef _OPENMP
        self = omp_get_thread_num(), team = omp_get_num_threads();  // there may be fewer than asked for
#endif
        const Tiles tiles;
        const Room own(room + self * s.room(), s);
        const Image image(own_images + self * s.image(), s);
        // All images of a thread in a block before the next: its weights are fetched from memory once.
        for (int64_t l = 0; each && l < L; l++) {
            const Block block(weights + l * s.block(), s);
            for (int64_t i = self; i < each * threads; i += team) whole_image<T>(s, block, tokens + i * floats, image, own);
        }
        const int64_t begin = bound(self, team, rest, s.N), end = bound(self + 1, team, rest, s.N);
        for (int64_t l = 0; rest && l < L; l++) {
            const Block block(weights + l * s.block(), s);
            float* const images = shared_images + l % 2 * rest * s.image();  // others may still read the last block's
            some_rows(s, block, shared_tokens, images, begin, end, own, ask<T>);
#pragma omp barrier
            some_rows(s, block, shared_tokens, images, begin, end, own, answer<T>);
        }
    }
}

// The call with the number format of so many cells in a unit: 1 is float32, 2 is bfloat16, 4 is int8.
template <class Call>
void with_format(int64_t cells, Call call) {
    if (cells == 1) call(Fp32{});
#if HAS_BF16
    if (cells == 2) call(Bf16{});
#endif
#if HAS_INT8
    if (cells == 4) call(Int8{});
#endif
}

}  // namespace

// Units of a packed block, a multiple of a vector; 0 for sizes or a number format that this is not for.
extern "C" int64_t patch_stage_block(int64_t cells, int64_t A, int64_t E, int64_t H) {
    const bool known = cells == 1 || (HAS_BF16 && cells == 2) || (HAS_INT8 && cells == 4);
    const Sizes s{1, A, E, H, 1, cells};
    const bool suits = A <= MAX_HEADS && E % W == 0 && H % W == 0 && A * E % (W * s.map_cells()) == 0;
    return known && suits ? s.block() : 0;
}

// Units of room that a call needs.
extern "C" int64_t patch_stage_room(
    int64_t cells, int64_t B, int64_t N, int64_t A, int64_t E, int64_t H, int64_t threads) {
    const Sizes s{N, A, E, H, rows_of_chunk(B, N, threads), cells};
    return threads * s.room() + ((B >= threads ? threads : 0) + 2 * (B % threads)) * s.image();
}

// qkv (3 D, D), proj (D, D), fc1 (H, D), fc2 (D, H), each followed by its bias, of qkv the first D; the mixings.
extern "C" void patch_stage_pack(
    int64_t cells, const float* qkv, const float* q_bias, const float* proj, const float* proj_bias, const float* fc1,
    const float* fc1_bias, const float* fc2, const float* fc2_bias, const float* before, const float* after,
    const float* bias, int64_t A, int64_t E, int64_t H, float* to) {
    const float* const from[] = {qkv, q_bias, proj, proj_bias, fc1, fc1_bias, fc2, fc2_bias, before, after, bias};
    with_format(cells, [&](auto format) { pack_block<decltype(format)>(from, {1, A, E, H, 1, cells}, to); });
}

// tokens (B, N, D), changed in place; weights of L blocks; room for this many threads.
extern "C" void patch_stage(
    int64_t cells, float* tokens, const float* weights, float* room, int64_t B, int64_t N, int64_t A, int64_t E,
    int64_t H, int64_t L, float eps, int64_t threads) {
    const Sizes s{N, A, E, H, rows_of_chunk(B, N, threads), cells, eps};
    with_format(cells, [&](auto format) { run<decltype(format)>(tokens, weights, room, B, L, s, threads); });
}
