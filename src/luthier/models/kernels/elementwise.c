/* Element-wise passes of a decoder layer, each over memory once. See the Python file beside it for each one's formula.

   Compiled at first use by `native.py` for the machine it runs on; nothing here knows torch. Every function comes for
   bfloat16 and for float32, by including this file from itself: T is the type of activations, SUFFIX ends its names.
   Arithmetic is in float32. Rows are split over OpenMP threads; no sum crosses rows but the norm's weight gradient,
   whose partial sums are of fixed groups of rows, so results do not depend on the number of threads. */

#ifndef SUFFIX

#include <math.h>
#include <stddef.h>
#include <stdlib.h>

#include "common.h"

#define GROUP 64 /* rows that share a partial sum of the norm's weight gradient */
#define BLOCK 256 /* numbers that are compared at once where one is looked for */
#define SMALL 32768 /* numbers below which a second thread costs more than it saves */

#define SELF "elementwise.c"
#include "both_types.h"

#else

#define NAME(name) JOIN(name, SUFFIX)

/* out = x + delta (delta may be NULL), normed = weight * (out / rms(out)); rstd: 1 / rms of each row */
void NAME(rms_norm)(const T *x, const T *delta, const T *weight, T *out, T *normed, float *rstd, long rows, long width,
                    float eps) {
#pragma omp parallel for schedule(static) if (rows * width > SMALL)
    for (long i = 0; i < rows; i++) {
        const T *xi = x + i * width;
        T *ni = normed + i * width;
        float sum = 0;
        if (delta) {
            const T *di = delta + i * width;
            T *oi = out + i * width;
#pragma omp simd reduction(+ : sum)
            for (long j = 0; j < width; j++) {
                T added = NARROW(WIDEN(xi[j]) + WIDEN(di[j]));
                oi[j] = added;
                float v = WIDEN(added);
                sum += v * v;
            }
            xi = oi;
        } else {
#pragma omp simd reduction(+ : sum)
            for (long j = 0; j < width; j++) {
                float v = WIDEN(xi[j]);
                sum += v * v;
            }
        }
        float r = 1.0f / sqrtf(sum / (float)width + eps);
        rstd[i] = r;
#pragma omp simd
        for (long j = 0; j < width; j++) ni[j] = NARROW(WIDEN(weight[j]) * WIDEN(NARROW(WIDEN(xi[j]) * r)));
    }
}

/* dx = residual (may be NULL) + gradient through the norm; partial (rows/GROUP, width; may be NULL): of the weight */
void NAME(rms_norm_back)(const T *dnormed, const T *x, const T *weight, const float *rstd, const T *residual, T *dx,
                         float *partial, long rows, long width) {
    long groups = (rows + GROUP - 1) / GROUP;
#pragma omp parallel for schedule(static) if (rows * width > SMALL)
    for (long g = 0; g < groups; g++) {
        long end = (g + 1) * GROUP < rows ? (g + 1) * GROUP : rows;
        for (long i = g * GROUP; i < end; i++) {
            const T *di = dnormed + i * width, *xi = x + i * width;
            T *oi = dx + i * width;
            float r = rstd[i], dot = 0;
#pragma omp simd reduction(+ : dot)
            for (long j = 0; j < width; j++) dot += WIDEN(di[j]) * WIDEN(weight[j]) * WIDEN(xi[j]);
            float along = dot * r * r * r / (float)width;
            if (residual) {
                const T *ri = residual + i * width;
#pragma omp simd
                for (long j = 0; j < width; j++)
                    oi[j] = NARROW(WIDEN(ri[j]) + r * WIDEN(weight[j]) * WIDEN(di[j]) - along * WIDEN(xi[j]));
            } else {
#pragma omp simd
                for (long j = 0; j < width; j++)
                    oi[j] = NARROW(r * WIDEN(weight[j]) * WIDEN(di[j]) - along * WIDEN(xi[j]));
            }
            if (partial) {
                float *pg = partial + g * width;
#pragma omp simd
                for (long j = 0; j < width; j++) pg[j] += WIDEN(di[j]) * WIDEN(xi[j]) * r;
            }
        }
    }
}

/* out = silu(gate) * up */
void NAME(swiglu)(const T *gate, const T *up, T *out, long count) {
#pragma omp parallel for simd schedule(static) if (count > SMALL)
    for (long i = 0; i < count; i++) {
        float g = WIDEN(gate[i]);
        out[i] = NARROW(g / (1.0f + fast_exp(-g)) * WIDEN(up[i]));
    }
}

/* dgate and dup may be gate and up themselves */
void NAME(swiglu_back)(const T *dout, const T *gate, const T *up, T *dgate, T *dup, long count) {
#pragma omp parallel for simd schedule(static) if (count > SMALL)
    for (long i = 0; i < count; i++) {
        float g = WIDEN(gate[i]), u = WIDEN(up[i]), d = WIDEN(dout[i]);
        float s = 1.0f / (1.0f + fast_exp(-g));
        dup[i] = NARROW(d * g * s);
        dgate[i] = NARROW(d * u * s * (1.0f + g * (1.0f - s)));
    }
}

/* Rotary positions: x (rows, heads, size) at any row stride -> out, contiguous. Halves are turned against each other:
   out1 = x1 cos1 - x2 sin1, out2 = x2 cos2 + x1 sin2; back: the transposed turn. */
void NAME(rotate)(const T *x, long stride, const T *cos_, const T *sin_, T *out, long rows, long heads, long size,
                  int back) {
    long half = size / 2;
#pragma omp parallel for schedule(static) if (rows * heads * size > SMALL)
    for (long i = 0; i < rows; i++) {
        const T *c = cos_ + i * size, *s = sin_ + i * size;
        for (long h = 0; h < heads; h++) {
            const T *xi = x + i * stride + h * size;
            T *oi = out + (i * heads + h) * size;
            if (back) {
#pragma omp simd
                for (long j = 0; j < half; j++) {
                    float a = WIDEN(xi[j]), b = WIDEN(xi[j + half]);
                    oi[j] = NARROW(a * WIDEN(c[j]) + b * WIDEN(s[j + half]));
                    oi[j + half] = NARROW(b * WIDEN(c[j + half]) - a * WIDEN(s[j]));
                }
            } else {
#pragma omp simd
                for (long j = 0; j < half; j++) {
                    float a = WIDEN(xi[j]), b = WIDEN(xi[j + half]);
                    oi[j] = NARROW(a * WIDEN(c[j]) - b * WIDEN(s[j]));
                    oi[j + half] = NARROW(b * WIDEN(c[j + half]) + a * WIDEN(s[j + half]));
                }
            }
        }
    }
}

/* log(sum(exp(logits))) of each row, and where its largest one is: the first of several, 0 if there is none (NaN) */
void NAME(log_sum_exp)(const T *logits, float *lse, long *first, long rows, long width) {
#pragma omp parallel for schedule(static) if (rows * width > SMALL)
    for (long i = 0; i < rows; i++) {
        const T *li = logits + i * width;
        float top = -INFINITY, sum = 0;
#pragma omp simd reduction(max : top)
        for (long j = 0; j < width; j++) {
            float v = WIDEN(li[j]);
            top = v > top ? v : top;
        }
#pragma omp simd reduction(+ : sum)
        for (long j = 0; j < width; j++) sum += fast_exp(WIDEN(li[j]) - top);
        lse[i] = top + logf(sum);
        first[i] = 0;
        for (long start = 0; start < width; start += BLOCK) {
            long end = start + BLOCK < width ? start + BLOCK : width;
            int found = 0;
#pragma omp simd reduction(| : found)
            for (long j = start; j < end; j++) found |= WIDEN(li[j]) == top;
            if (!found) continue;
            for (first[i] = start; WIDEN(li[first[i]]) != top;) first[i]++;
            break;
        }
    }
}

/* Logits become the gradient of sum_q g_q logprob(target_q): g_q at each target less softmax * sum of g_q of the row.
   Predictions q of row i are starts[i]:starts[i + 1]; a row predicts a target once. */
void NAME(log_softmax_back)(T *logits, const float *lse, const long *starts, const long *targets, const float *g,
                            long rows, long width) {
#pragma omp parallel for schedule(static) if (rows * width > SMALL)
    for (long i = 0; i < rows; i++) {
        T *li = logits + i * width;
        float sum = 0, top = lse[i];
        long count = starts[i + 1] - starts[i];
        float few[16], *at = count > 16 ? malloc(count * sizeof(float)) : few;
        for (long q = 0; q < count; q++) {
            sum += g[starts[i] + q];
            at[q] = WIDEN(li[targets[starts[i] + q]]);
        }
#pragma omp simd
        for (long j = 0; j < width; j++) li[j] = NARROW(-sum * fast_exp(WIDEN(li[j]) - top));
        for (long q = 0; q < count; q++)
            li[targets[starts[i] + q]] = NARROW(g[starts[i] + q] - sum * fast_exp(at[q] - top));
        if (at != few) free(at);
    }
}

#undef NAME
#endif
