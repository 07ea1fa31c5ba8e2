// The patch stage of a folded CaiT without gradients, float32: all blocks in one call, on packed weights.
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
    return rows < CHUNK ? rows : CHUNK;
}

struct Sizes {
    int64_t N, A, E, H;
    int64_t chunk;  // rows that go through a layer before the next layer begins, at most
    float eps = 0;

    int64_t D() const { return A * E; }
    int64_t columns() const { return round_up(N, W); }  // of a map
    // Floats of a block's weights, of an image's queries, keys and values, of a thread's own room.
    int64_t block() const { return round_up(D() * (4 * D() + 2 * H) + 3 * D() + H + 2 * A * A + A, W); }
    int64_t image() const { return 2 * N * D() + columns() * D(); }
    int64_t room() const { return chunk * (2 * D() + (H > D() ? H : D())) + A * MAP_ROWS * columns(); }
};

// A block's weights, as patch_stage_pack lays them one behind the other.
struct Block {
    const float *q, *k, *v, *proj, *fc1, *fc2, *q_bias, *proj_bias, *fc1_bias, *fc2_bias;
    Mixing mixing;

    Block(const float* at, const Sizes& s) {
        const auto take = [&](int64_t count) { return (at += count) - count; };
        const int64_t D = s.D();
        q = take(D * D), k = take(D * D), v = take(D * D), proj = take(D * D), fc1 = take(D * s.H), fc2 = take(s.H * D);
        q_bias = take(D), proj_bias = take(D), fc1_bias = take(s.H), fc2_bias = take(D);
        mixing.before = take(s.A * s.A), mixing.after = take(s.A * s.A), mixing.bias = take(s.A);
    }
};

struct Image {
    float *queries, *values, *keys;  // (N, D), (N, D), (D, columns)
    Image(float* at, const Sizes& s) : queries(at), values(at + s.N * s.D()), keys(values + s.N * s.D()) {}
};

struct Room {
    float *normal, *read, *hidden, *maps;  // (M, D), (M, D), (M, H) or (M, D), (A, MAP_ROWS, columns)
    Room(float* at, const Sizes& s)
        : normal(at), read(normal + s.chunk * s.D()), hidden(read + s.chunk * s.D()),
          maps(at + s.room() - s.A * MAP_ROWS * s.columns()) {}
};

// Queries, keys and values of M rows of an image, from `first` on.
void ask(const Sizes& s, const Block& w, float* tokens, const Image& image, int64_t first, int64_t M, const Room& room) {
    const int64_t D = s.D();
    const auto linear = [&](const float* weight, const float* bias, float* out) {
        multiply({room.normal, weight, bias, out, D, 0, D, D, Out::put}, M, D);
    };
    normalize(tokens + first * D, M, D, s.eps, room.normal);
    linear(w.q, w.q_bias, image.queries + first * D);
    linear(w.k, nullptr, room.hidden);
    turn(room.hidden, M, D, image.keys + first, s.columns());
    linear(w.v, nullptr, image.values + first * D);
}

// What M rows read, at most MAP_ROWS.
void attend(const Sizes& s, const Block& w, const Image& image, int64_t first, int64_t M, float* maps, float* read) {
    const int64_t D = s.D(), columns = s.columns(), head_step = MAP_ROWS * columns;
    for (int64_t a = 0; a < s.A; a++) {
        const float *queries = image.queries + first * D + a * s.E, *keys = image.keys + a * s.E * columns;
        multiply({queries, keys, nullptr, maps + a * head_step, D, columns, columns, s.E, Out::put}, M, columns);
    }
    for (int64_t m = 0; m < M; m++) mix(maps + m * columns, head_step, s.N, s.A, w.mixing);
    for (int64_t a = 0; a < s.A; a++) {
        const float *of_head = maps + a * head_step, *values = image.values + a * s.E;
        multiply({of_head, values, nullptr, read + a * s.E, columns, D, D, s.N, Out::put}, M, s.E);
    }
}

// The rest of the block: attention and MLP of M rows, both added to the tokens.
void answer(const Sizes& s, const Block& w, float* tokens, const Image& image, int64_t first, int64_t M, const Room& room) {
    const int64_t D = s.D();
    float* const own = tokens + first * D;
    for (int64_t m = 0; m < M; m += MAP_ROWS)
        attend(s, w, image, first + m, M - m < MAP_ROWS ? M - m : MAP_ROWS, room.maps, room.read + m * D);
    multiply({room.read, w.proj, w.proj_bias, own, D, 0, D, D, Out::add}, M, D);
    normalize(own, M, D, s.eps, room.normal);
    multiply({room.normal, w.fc1, w.fc1_bias, room.hidden, D, 0, s.H, D, Out::gelu}, M, s.H);
    multiply({room.hidden, w.fc2, w.fc2_bias, own, s.H, 0, D, s.H, Out::add}, M, D);
}

// Rows first to last in chunks of nearly equal size.
template <class Step>
void in_chunks(const Sizes& s, int64_t first, int64_t last, Step step) {
    for (int64_t left = (last - first + s.chunk - 1) / s.chunk; left > 0; left--) {
        const int64_t M = (last - first + left - 1) / left;
        step(first, M);
        first += M;
    }
}

void whole_image(const Sizes& s, const Block& w, float* tokens, const Image& image, const Room& room) {
    in_chunks(s, 0, s.N, [&](int64_t first, int64_t M) { ask(s, w, tokens, image, first, M, room); });
    in_chunks(s, 0, s.N, [&](int64_t first, int64_t M) { answer(s, w, tokens, image, first, M, room); });
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

}  // namespace

// Floats of a packed block, a multiple of a vector; 0 for sizes that this is not for.
extern "C" int64_t patch_stage_block(int64_t A, int64_t E, int64_t H) {
    return A <= MAX_HEADS && E % W == 0 && H % W == 0 ? Sizes{1, A, E, H, 1}.block() : 0;
}

// Floats of room that a call needs.
extern "C" int64_t patch_stage_room(int64_t B, int64_t N, int64_t A, int64_t E, int64_t H, int64_t threads) {
    const Sizes s{N, A, E, H, rows_of_chunk(B, N, threads)};
    return threads * s.room() + ((B >= threads ? threads : 0) + 2 * (B % threads)) * s.image();
}

// qkv (3 D, D), proj (D, D), fc1 (H, D), fc2 (D, H) and their biases, of qkv the first D; the mixings.
extern "C" void patch_stage_pack(
    const float* qkv, const float* q_bias, const float* proj, const float* proj_bias, const float* fc1,
    const float* fc1_bias, const float* fc2, const float* fc2_bias, const float* before, const float* after,
    const float* bias, int64_t A, int64_t E, int64_t H, float* to) {
    const int64_t D = A * E;
    for (int part = 0; part < 3; part++, to += D * D) pack(qkv + part * D * D, D, D, to);
    pack(proj, D, D, to), to += D * D;
    pack(fc1, H, D, to), to += H * D;
    pack(fc2, D, H, to), to += D * H;
    const auto copy = [&](const float* from, int64_t count) {
        for (int64_t i = 0; i < count; i++) *to++ = from[i];
    };
    copy(q_bias, D), copy(proj_bias, D), copy(fc1_bias, H), copy(fc2_bias, D);
    copy(before, A * A), copy(after, A * A), copy(bias, A);
}

// tokens (B, N, D), changed in place; weights of L blocks; room for this many threads.
extern "C" void patch_stage(
    float* tokens, const float* weights, float* room, int64_t B, int64_t N, int64_t A, int64_t E, int64_t H, int64_t L,
    float eps, int64_t threads) {
    const Sizes s{N, A, E, H, rows_of_chunk(B, N, threads), eps};
    const int64_t each = B / threads, rest = B % threads, floats = N * s.D();
    float* const own_images = room + threads * s.room();
    float* const shared_images = own_images + (each ? threads : 0) * s.image();
    float* const shared_tokens = tokens + each * threads * floats;
#pragma omp parallel num_threads(threads)
    {
        int64_t self = 0, team = 1;
#ifdef _OPENMP
        self = omp_get_thread_num(), team = omp_get_num_threads();  // there may be fewer than asked for
#endif
        const Room own(room + self * s.room(), s);
        const Image image(own_images + self * s.image(), s);
        // All images of a thread in a block before the next: its weights are fetched from memory once.
        for (int64_t l = 0; each && l < L; l++) {
            const Block block(weights + l * s.block(), s);
            for (int64_t i = self; i < each * threads; i += team) whole_image(s, block, tokens + i * floats, image, own);
        }
        const int64_t begin = self * rest * N / team, end = (self + 1) * rest * N / team;
        for (int64_t l = 0; rest && l < L; l++) {
            const Block block(weights + l * s.block(), s);
            float* const images = shared_images + l % 2 * rest * s.image();  // others may still read the last block's
            some_rows(s, block, shared_tokens, images, begin, end, own, ask);
#pragma omp barrier
            some_rows(s, block, shared_tokens, images, begin, end, own, answer);
        }
    }
}
