// Talking-heads attention, one block of rows of all heads at a time, and a layer norm without an affine part.
//
// The maps of a block stay in the second-level cache of the core that computes them, from the first product to the
// last: scores, mixing and row maximum in one sweep, exponentials and row sum in a second, the other mixing with the
// division by the sum in a third. Queries, keys and values are read where the layer `qkv` left them and the heads'
// outputs are written side by side: nothing is copied. Float32 on the CPU; vectors are GCC's and Clang's own type,
// which any instruction set can carry.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

// The matrix product of the BLAS inside libtorch; column-major, every argument by address.
extern "C" void sgemm_(const char* turn_a, const char* turn_b, const int* m, const int* n, const int* k,
                       const float* alpha, const float* a, const int* lda, const float* b, const int* ldb,
                       const float* beta, float* c, const int* ldc);

namespace {

constexpr int64_t LANES = 16;
// Maps of a block: half of a usual second-level cache, the other half is for keys, values and output.
constexpr int64_t BLOCK_BYTES = 384 << 10;
constexpr int64_t MAX_HEADS = 64;

typedef float floats __attribute__((vector_size(LANES * 4), aligned(4)));
typedef int32_t ints __attribute__((vector_size(LANES * 4), aligned(4)));

inline floats load(const float* from) {
  floats value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}
inline void store(float* to, floats value) { std::memcpy(to, &value, sizeof(value)); }
inline floats fill(float value) { return value - floats{}; }
inline floats larger(floats a, floats b) { return a > b ? a : b; }
inline floats smaller(floats a, floats b) { return a < b ? a : b; }

// e^x for x <= 0, relative error below 2e-7: 2^k times a Taylor polynomial on |r| <= ln 2 / 2.
inline floats exponential(floats x) {
  x = larger(x, fill(-87.0f));
  // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
  const floats shifter = fill(12582912.0f);
  floats shifted = x * 1.44269504088896341f + shifter;
  floats k = shifted - shifter;
  floats r = x - k * 0.693359375f;
  r = r + k * 2.12194440e-4f;
  floats p = fill(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  ints bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  ints scale_bits = (bits - 0x4B400000 + 127) << 23;
  floats scale;
  std::memcpy(&scale, &scale_bits, sizeof(scale));
  return p * scale;
}

inline float sum_of(floats value) {
  float sum = 0;
  for (int64_t i = 0; i < LANES; ++i) sum += value[i];
  return sum;
}
inline float largest_of(floats value) {
  float largest = value[0];
  for (int64_t i = 1; i < LANES; ++i) largest = std::max(largest, value[i]);
  return largest;
}

// One row of every head: mixed, softmax, mixed again, in place. `maps` is the row in head 0, `stride` leads to the
// same row of the next head. HEADS = 0 means a number known at run time only.
template <int HEADS>
void attend_row(float* maps, int64_t stride, int64_t N, int64_t heads, const float* mix_l, const float* mix_w,
                const float* bias_w) {
  const int64_t A = HEADS ? HEADS : heads;
  constexpr int64_t ROOM = HEADS ? HEADS : MAX_HEADS;
  const int64_t end = (N + LANES - 1) / LANES * LANES;
  floats largest[ROOM], in[ROOM];
  const floats lowest = fill(-std::numeric_limits<float>::max());
  for (int64_t a = 0; a < A; ++a) largest[a] = lowest;
  for (int64_t j = 0; j < end; j += LANES) {
    for (int64_t b = 0; b < A; ++b) in[b] = load(maps + b * stride + j);
    for (int64_t a = 0; a < A; ++a) {
      floats mixed = in[0] * mix_l[a * A];
      for (int64_t b = 1; b < A; ++b) mixed += in[b] * mix_l[a * A + b];
      if (j + LANES > N)
        for (int64_t i = N - j; i < LANES; ++i) mixed[i] = lowest[0];
      largest[a] = larger(largest[a], mixed);
      store(maps + a * stride + j, mixed);
    }
  }
  float scaled[ROOM * ROOM];
  for (int64_t b = 0; b < A; ++b) {
    const floats top = fill(largest_of(largest[b]));
    floats sum = {};
    float* row = maps + b * stride;
    for (int64_t j = 0; j < end; j += LANES) {
      const floats weight = exponential(load(row + j) - top);
      sum += weight;
      store(row + j, weight);
    }
    const float inverse = 1.0f / sum_of(sum);
    for (int64_t a = 0; a < A; ++a) scaled[a * A + b] = mix_w[a * A + b] * inverse;
  }
  for (int64_t j = 0; j < end; j += LANES) {
    for (int64_t b = 0; b < A; ++b) in[b] = load(maps + b * stride + j);
    for (int64_t a = 0; a < A; ++a) {
      floats mixed = fill(bias_w[a]);
      for (int64_t b = 0; b < A; ++b) mixed += in[b] * scaled[a * A + b];
      store(maps + a * stride + j, mixed);
    }
  }
}

using RowFunction = void (*)(float*, int64_t, int64_t, int64_t, const float*, const float*, const float*);

RowFunction row_function(int64_t A) {
  switch (A) {
    case 2: return attend_row<2>;
    case 3: return attend_row<3>;
    case 4: return attend_row<4>;
    case 6: return attend_row<6>;
    case 8: return attend_row<8>;
    case 16: return attend_row<16>;
    default: return attend_row<0>;
  }
}

struct Shapes {
  int64_t B, N, A, E, D, width;  // width = 3 D, the distance between tokens in qkv
  int64_t padded, rows;          // columns of a map in memory, rows of a block
};

// c = a b, all column-major; a is turned first where asked.
void multiply(bool turn_a, int m, int n, int k, const float* a, int lda, const float* b, int ldb, float* c, int ldc) {
  const float one = 1.0f, zero = 0.0f;
  sgemm_(turn_a ? "T" : "N", "N", &m, &n, &k, &one, a, &lda, b, &ldb, &zero, c, &ldc);
}

void attend_block(const float* qkv, float* out, float* maps, int64_t image, int64_t first, int64_t rows,
                  const Shapes& s, const float* mix_l, const float* mix_w, const float* bias_w) {
  const float* tokens = qkv + image * s.N * s.width;
  const int64_t stride = s.rows * s.padded;
  // Column-major products of row-major matrices: every matrix is seen transposed.
  for (int64_t a = 0; a < s.A; ++a) {
    const float* q = tokens + first * s.width + a * s.E;
    const float* k = tokens + s.D + a * s.E;
    multiply(true, s.N, rows, s.E, k, s.width, q, s.width, maps + a * stride, s.padded);
  }
  const RowFunction attend = row_function(s.A);
  for (int64_t row = 0; row < rows; ++row)
    attend(maps + row * s.padded, stride, s.N, s.A, mix_l, mix_w, bias_w);
  for (int64_t a = 0; a < s.A; ++a) {
    const float* v = tokens + 2 * s.D + a * s.E;
    float* place = out + (image * s.N + first) * s.D + a * s.E;
    multiply(false, s.E, rows, s.N, v, s.width, maps + a * stride, s.padded, place, s.D);
  }
}

at::Tensor attend_rows(const at::Tensor& qkv_BND3, const at::Tensor& mix_l, const at::Tensor& mix_w,
                       const at::Tensor& bias_w) {
  TORCH_CHECK(qkv_BND3.scalar_type() == at::kFloat && qkv_BND3.is_contiguous() && qkv_BND3.dim() == 3,
              "expected contiguous float32 (B, N, 3 D), got ", qkv_BND3.sizes());
  Shapes s;
  s.B = qkv_BND3.size(0);
  s.N = qkv_BND3.size(1);
  s.width = qkv_BND3.size(2);
  s.A = bias_w.size(0);
  TORCH_CHECK(s.A <= MAX_HEADS && s.width % (3 * s.A) == 0, "expected at most 64 heads that divide D, got ", s.A);
  s.D = s.width / 3;
  s.E = s.D / s.A;
  s.padded = (s.N + LANES - 1) / LANES * LANES;
  const int64_t room = std::max<int64_t>(1, BLOCK_BYTES / (s.A * s.padded * 4));
  // Blocks of equal size, and enough of them for every thread.
  int64_t blocks = std::max<int64_t>(1, (s.N + room - 1) / room);
  while (s.B * blocks < at::get_num_threads() && blocks < s.N) ++blocks;
  s.rows = (s.N + blocks - 1) / blocks;
  blocks = (s.N + s.rows - 1) / s.rows;
  at::Tensor out = at::empty({s.B, s.N, s.D}, qkv_BND3.options());
  const at::Tensor l = mix_l.contiguous(), w = mix_w.contiguous(), bias = bias_w.contiguous();
  const float* qkv = qkv_BND3.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  at::parallel_for(0, s.B * blocks, 1, [&](int64_t from, int64_t until) {
    std::vector<float> maps(s.A * s.rows * s.padded + LANES, 0.0f);
    for (int64_t index = from; index < until; ++index) {
      const int64_t first = index % blocks * s.rows;
      attend_block(qkv, to, maps.data(), index / blocks, first, std::min(s.rows, s.N - first), s,
                   l.const_data_ptr<float>(), w.const_data_ptr<float>(), bias.const_data_ptr<float>());
    }
  });
  return out;
}

// tokens += branch; returns (tokens - mean) / sqrt(variance + eps), row by row.
at::Tensor add_and_normalize(at::Tensor& tokens, const at::Tensor& branch, double eps) {
  TORCH_CHECK(tokens.scalar_type() == at::kFloat && tokens.is_contiguous(), "expected contiguous float32 tokens");
  const bool add = branch.numel() != 0;
  TORCH_CHECK(!add || (branch.is_contiguous() && branch.numel() == tokens.numel()), "expected a branch like tokens");
  const int64_t D = tokens.size(-1), rows = tokens.numel() / D;
  at::Tensor out = at::empty_like(tokens);
  float* x = tokens.mutable_data_ptr<float>();
  const float* y = add ? branch.const_data_ptr<float>() : nullptr;
  float* to = out.mutable_data_ptr<float>();
  at::parallel_for(0, rows, 16, [&](int64_t from, int64_t until) {
    for (int64_t row = from; row < until; ++row) {
      float* line = x + row * D;
      float* result = to + row * D;
      const int64_t whole = D / LANES * LANES;
      floats sums = {}, squares = {};
      float sum = 0, square = 0;
      for (int64_t j = 0; j < whole; j += LANES) {
        floats value = load(line + j);
        if (add) {
          value += load(y + row * D + j);
          store(line + j, value);
        }
        sums += value;
      }
      for (int64_t j = whole; j < D; ++j) sum += (line[j] += add ? y[row * D + j] : 0.0f);
      const float mean = (sum + sum_of(sums)) / D;
      for (int64_t j = 0; j < whole; j += LANES) {
        const floats centred = load(line + j) - mean;
        squares += centred * centred;
      }
      for (int64_t j = whole; j < D; ++j) square += (line[j] - mean) * (line[j] - mean);
      const float scale = 1.0f / std::sqrt((square + sum_of(squares)) / D + static_cast<float>(eps));
      for (int64_t j = 0; j < whole; j += LANES) store(result + j, (load(line + j) - mean) * scale);
      for (int64_t j = whole; j < D; ++j) result[j] = (line[j] - mean) * scale;
    }
  });
  return out;
}

TORCH_LIBRARY_FRAGMENT(deepcait, library) {
  library.def("attend_rows(Tensor qkv, Tensor mix_l, Tensor mix_w, Tensor bias_w) -> Tensor");
  library.def("add_and_normalize(Tensor(a!) tokens, Tensor branch, float eps) -> Tensor");
}

TORCH_LIBRARY_IMPL(deepcait, CPU, library) {
  library.impl("attend_rows", &attend_rows);
  library.impl("add_and_normalize", &add_and_normalize);
}

}  // namespace
