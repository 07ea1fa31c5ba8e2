// The linear layers of a training step with what surrounds them, in float32: the norm before a branch's first layer, the
// GELU before its last one, and the residual stream. native.py compiles and calls this; layers.py is the same in PyTorch.
//
// Rows are computed in chunks that stay in the core's cache from one operation to the next. A row depends on no other
// one, so a result is the same for any number of threads. Gradients of weights are sums over rows: PyTorch computes them,
// and what follows from them is computed here.
//
// A weight is the right matrix (K, O) of a product, or its transpose; it is packed into panels first (products.h), and
// scaled on the way: by the norm's weight before a branch, by LayerScale at its end.
//
// Letters: R rows, M rows of a chunk, N rows of an image, D width of the residual stream, K what is summed over, O outputs.

#ifdef _OPENMP
#include <omp.h>
#endif

#include "products.h"

namespace {

constexpr int64_t CHUNK = 112;  // rows, at most
constexpr int64_t STRIP = 3;    // vectors of columns whose sums are taken together

struct Weight {
    const float* values;               // (K, O), or (O, K) if turned
    const float *scale_K, *scale_O;    // factors of rows and of columns of (K, O), or null
    bool turned;
    float* panels;                     // room for as many values
    int64_t K, O;
};

// The panel that begins with this column.
void pack_panel(const Weight& w, int64_t column) {
    const int64_t width = w.O - column < PANEL ? w.O - column : PANEL;
    float* const panel = w.panels + column * w.K;
    for (int64_t k = 0; k < w.K; k += W)
        for (int64_t o = 0; o < width; o += W) {
            float* const to = panel + k * width + o;
            if (w.turned) turn_square(w.values + (column + o) * w.K + k, w.K, to, width);
            for (int64_t i = 0; i < W; i++) {
                vec value = load(w.turned ? to + i * width : w.values + (k + i) * w.O + column + o);
                if (w.scale_K) value = value * w.scale_K[k + i];
                if (w.scale_O) value = value * load(w.scale_O + column + o);
                store(to + i * width, value);
            }
        }
}

// step(row, M, own room) for all chunks, after packing the weight. `own`: floats of a thread's room, behind the panels.
template <class Step>
void in_chunks(const Weight& w, int64_t R, int64_t own, int64_t threads, Step step) {
    const int64_t chunks = (R + CHUNK - 1) / CHUNK;
#pragma omp parallel num_threads(threads)
    {
        int64_t self = 0;
#ifdef _OPENMP
        self = omp_get_thread_num();
#endif
#pragma omp for schedule(static)
        for (int64_t column = 0; column < w.O; column += PANEL) pack_panel(w, column);
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < chunks; i++) {
            const int64_t row = i * R / chunks;
            step(row, (i + 1) * R / chunks - row, w.panels + w.K * w.O + self * own);
        }
    }
}

void multiply_rows(const float* rows, const Weight& w, const float* bias, float* out, int64_t M) {
    multiply<Fp32>({rows, w.panels, bias, out, w.K, 0, w.O, w.K, Out::floats}, M, w.O);
}

// (x - mean) / deviation of each row.
void normalise_rows(const float* x, int64_t M, int64_t D, float eps, float* out, float* mean, float* rstd) {
    for (int64_t m = 0; m < M; m++, x += D, out += D) {
        vec sum = vec{}, squares = vec{};
        for (int64_t d = 0; d < D; d += W) sum += load(x + d);
        mean[m] = total(sum) / D;
        for (int64_t d = 0; d < D; d += W) {
            const vec centred = load(x + d) - mean[m];
            squares = fused(centred, centred, squares);
        }
        rstd[m] = 1.0f / std::sqrt(total(squares) / D + eps);
        for (int64_t d = 0; d < D; d += W) store(out + d, (load(x + d) - mean[m]) * rstd[m]);
    }
}

// grad_x = grad + the gradient that passes through the norm of one row; `normal` is the normalised row again.
void normalise_row_backward(const float* grad, const float* grad_normal, const float* x, int64_t D, float mean, float rstd,
                            float* grad_x, float* normal) {
    vec sum = vec{}, along = vec{};
    for (int64_t d = 0; d < D; d += W) {
        const vec value = (load(x + d) - mean) * rstd, slope = load(grad_normal + d);
        store(normal + d, value);
        sum += slope;
        along = fused(slope, value, along);
    }
    const float shift = total(sum) / D, part = total(along) / D;
    for (int64_t d = 0; d < D; d += W) {
        const vec left = load(grad_normal + d) - shift - load(normal + d) * part;
        store(grad_x + d, fused(left, rstd, load(grad + d)));
    }
}

// GELU and its derivative, which are x P and P + x p with the normal distribution's P and p.
void gelu_backward(float* hidden_grad, const float* hidden, float* read, int64_t count) {
    for (int64_t i = 0; i < count; i += W) {
        const vec x = load(hidden + i), half = spread(0.5f), P = fused(scaled_erf(x), half, half);
        const vec slope = fused(x * 0.39894228f, exponential(x * x * -0.5f), P);
        store(read + i, gelu(x));
        store(hidden_grad + i, load(hidden_grad + i) * slope);
    }
}

}  // namespace

// Whether sizes are multiples of a vector.
extern "C" int64_t layers_support(int64_t K, int64_t O) { return K > 0 && O > 0 && K % W == 0 && O % W == 0; }

// Floats of room for a weight (K, O) and what the threads need.
extern "C" int64_t layers_buffer(int64_t K, int64_t O, int64_t threads) { return K * O + threads * CHUNK * (K + O); }

// out (R, O) = (norm(x) scale) weight' + bias, with mean and 1 / deviation of each row of x (R, K); weight (O, K).
extern "C" void layers_norm_linear(
    const float* x, const float* weight, const float* scale, const float* bias, float* out, float* mean, float* rstd,
    float* room, int64_t R, int64_t K, int64_t O, float eps, int64_t threads) {
    const Weight w{weight, scale, nullptr, true, room, K, O};
    in_chunks(w, R, CHUNK * (K + O), threads, [&](int64_t row, int64_t M, float* normal) {
        normalise_rows(x + row * K, M, K, eps, normal, mean + row, rstd + row);
        multiply_rows(normal, w, bias, out + row * O, M);
    });
}

// out (R, O) = x + keep ((rows weight') scale + bias), or of the GELU of the rows (R, K). keep: of each image, or null.
extern "C" void layers_linear_add(
    const float* x, const float* rows, const float* weight, const float* scale, const float* bias, const float* keep,
    float* out, float* room, int64_t R, int64_t N, int64_t K, int64_t O, int64_t has_gelu, int64_t threads) {
    const Weight w{weight, nullptr, scale, true, room, K, O};
    in_chunks(w, R, CHUNK * (K + O), threads, [&](int64_t row, int64_t M, float* branch) {
        float* const active = branch + CHUNK * O;
        for (int64_t i = 0; has_gelu && i < M * K; i += W) store(active + i, gelu(load(rows + row * K + i)));
        multiply_rows(has_gelu ? active : rows + row * K, w, bias, branch, M);
        for (int64_t m = 0; m < M; m++) {
            const int64_t at = (row + m) * O;
            const float factor = keep ? keep[(row + m) / N] : 1.0f;
            for (int64_t o = 0; o < O; o += W) store(out + at + o, fused(load(branch + m * O + o), factor, load(x + at + o)));
        }
    });
}

// grad_rows (R, O) = keep (grad scale) weight; if `hidden` (R, O) is given, through its GELU, which is returned in `read`.
extern "C" void layers_linear_add_backward(
    const float* grad, const float* weight, const float* scale, const float* keep, const float* hidden, float* grad_rows,
    float* read, float* room, int64_t R, int64_t N, int64_t K, int64_t O, int64_t threads) {
    const Weight w{weight, scale, nullptr, false, room, K, O};
    in_chunks(w, R, CHUNK * (K + O), threads, [&](int64_t row, int64_t M, float* kept) {
        for (int64_t m = 0; keep && m < M; m++)
            for (int64_t k = 0; k < K; k += W)
                store(kept + m * K + k, load(grad + (row + m) * K + k) * keep[(row + m) / N]);
        multiply_rows(keep ? kept : grad + row * K, w, nullptr, grad_rows + row * O, M);
        if (hidden) gelu_backward(grad_rows + row * O, hidden + row * O, read + row * O, M * O);
    });
}

// grad_x (R, O) = grad + the gradient of `layers_norm_linear` for x, from that of its output (R, K); norm(x) again.
extern "C" void layers_norm_linear_backward(
    const float* grad, const float* grad_out, const float* weight, const float* scale, const float* x, const float* mean,
    const float* rstd, float* grad_x, float* normal, float* room, int64_t R, int64_t K, int64_t O, int64_t threads) {
    const Weight w{weight, nullptr, scale, false, room, K, O};
    in_chunks(w, R, CHUNK * (K + O), threads, [&](int64_t row, int64_t M, float* grad_normal) {
        multiply_rows(grad_out + row * K, w, nullptr, grad_normal, M);
        for (int64_t m = 0; m < M; m++) {
            const int64_t at = (row + m) * O;
            normalise_row_backward(grad + at, grad_normal + m * O, x + at, O, mean[row + m], rstd[row + m], grad_x + at,
                                   normal + at);
        }
    });
}

// Of W = V diag(scale) and b = bias + V shift, from their gradients (O, K) and (O): those of V, in place of W's, of scale
// and of shift (K). The rows are added up in order, by strips of columns.
extern "C" void layers_norm_gradients(
    float* outer, const float* grad_bias, const float* weight, const float* scale, const float* shift, float* grad_scale,
    float* grad_shift, int64_t K, int64_t O, int64_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t first = 0; first < K; first += STRIP * W) {
        vec along[STRIP] = {}, sum[STRIP] = {};
        const int64_t count = K - first < STRIP * W ? (K - first) / W : STRIP;
        for (int64_t o = 0; o < O; o++)
            for (int64_t i = 0; i < count; i++) {
                const int64_t column = first + i * W, at = o * K + column;
                const vec value = load(weight + at), grad = load(outer + at);
                along[i] = fused(value, grad, along[i]);
                sum[i] = fused(value, grad_bias[o], sum[i]);
                store(outer + at, fused(grad, load(scale + column), load(shift + column) * grad_bias[o]));
            }
        for (int64_t i = 0; i < count; i++)
            store(grad_scale + first + i * W, along[i]), store(grad_shift + first + i * W, sum[i]);
    }
}

// Of W = diag(gamma) V, from (O, K) what its gradient is without gamma: that of V, in its place, and `along` (O), the sum
// over K of V times what was there.
extern "C" void layers_scale_gradients(
    float* outer, const float* weight, const float* gamma, float* along, int64_t K, int64_t O, int64_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t o = 0; o < O; o++) {
        vec sum = vec{};
        for (int64_t k = o * K; k < (o + 1) * K; k += W) {
            const vec grad = load(outer + k);
            sum = fused(load(weight + k), grad, sum);
            store(outer + k, grad * gamma[o]);
        }
        along[o] = total(sum);
    }
}
