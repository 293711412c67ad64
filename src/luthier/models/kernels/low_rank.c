/* Low-rank updates of single rows, each by an adapter of its own. See `low_rank.py` for the formula.

   Twice included from itself, as elementwise.c. Sums are in float32; rows are split over OpenMP threads and no sum
   crosses rows, so results do not depend on the number of threads or on what else is in the batch. */

#ifndef SUFFIX

#include <stddef.h>
#include <stdlib.h>

#include "common.h"

#define SELF "low_rank.c"
#include "both_types.h"

#else

#define NAME(name) JOIN(name, SUFFIX)

/* out[i] = (x[i] a[w]^T) b[w] with w = which[i]; rows whose w is 0 stay as they are.
   x (rows, in), a (n, rank, in), b (n, rank, width), out (rows, width) */
void NAME(low_rank_rows)(const T *x, const T *a, const T *b, const int64_t *which, T *out, long rows, long in,
                         long width, long rank) {
#pragma omp parallel if (rows > 1)
    {
        float *sum = malloc(sizeof(float) * (size_t)width);
        if (!sum) abort(); /* as malloc failing in torch: nothing can go on */
#pragma omp for schedule(dynamic, 1)
        for (long i = 0; i < rows; i++) {
            if (which[i] == 0) continue;
            const T *xi = x + i * in, *aw = a + which[i] * rank * in, *bw = b + which[i] * rank * width;
            for (long j = 0; j < width; j++) sum[j] = 0;
            for (long r = 0; r < rank; r++) {
                const T *ar = aw + r * in, *br = bw + r * width;
                float low = 0;
#pragma omp simd reduction(+ : low)
                for (long j = 0; j < in; j++) low += WIDEN(ar[j]) * WIDEN(xi[j]);
                low = WIDEN(NARROW(low));
#pragma omp simd
                for (long j = 0; j < width; j++) sum[j] += low * WIDEN(br[j]);
            }
            T *oi = out + i * width;
            for (long j = 0; j < width; j++) oi[j] = NARROW(sum[j]);
        }
        free(sum);
    }
}

#undef NAME

#endif
