/* C (m, columns of 64) = or += A (m, k) B (k, 64), A at any strides, in units of PAIRS numbers; columns beyond `width` are not computed.
   Included by attention.c for each kind of unit. */

#if PAIRS == 2
typedef __m512i NAME_(Packed);
#define MULTIPLY(sum, a, b) ((vf)_mm512_dpbf16_ps((__m512)(sum), (__m512bh)_mm512_set1_epi32((int)(a)), (__m512bh)(b)))
#else
typedef vf NAME_(Packed);
#define MULTIPLY(sum, a, b) ((sum) + (a) * (b))
#endif

static inline __attribute__((always_inline)) void NAME_(tile)(const int m, const int vectors, long k, const UNIT *a, long by_row, long by_k,
                                                              const UNIT *b, float *c, long ldc, int add) {
    vf sum[6][4]; /* fixed size and unrolled loops: it lives in registers */
#pragma GCC unroll 6
    for (int i = 0; i < m; i++)
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) {
            if (add)
                memcpy(&sum[i][j], c + i * ldc + j * 16, 64);
            else
                sum[i][j] = (vf){0};
        }
    for (long t = 0; t < k; t++) {
        NAME_(Packed) column[4];
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) memcpy(&column[j], b + t * 64 + j * 16, 64);
#pragma GCC unroll 6
        for (int i = 0; i < m; i++)
#pragma GCC unroll 4
            for (int j = 0; j < vectors; j++) sum[i][j] = MULTIPLY(sum[i][j], a[i * by_row + t * by_k], column[j]);
    }
#pragma GCC unroll 6
    for (int i = 0; i < m; i++)
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) memcpy(c + i * ldc + j * 16, &sum[i][j], 64);
}

#define ROWS_OF(m, vectors)                                                                  \
    for (; rows >= m; rows -= m, a += m * by_row, c += m * ldc) NAME_(tile)(m, vectors, k, a, by_row, by_k, b, c, ldc, add);

static void NAME_(product)(long rows, long width, long k, const UNIT *a, long by_row, long by_k, const UNIT *b, float *c, long ldc, int add) {
    switch ((width + 15) / 16) {
        case 1: ROWS_OF(6, 1) ROWS_OF(1, 1) break;
        case 2: ROWS_OF(6, 2) ROWS_OF(1, 2) break;
        case 3: ROWS_OF(6, 3) ROWS_OF(1, 3) break;
        default: ROWS_OF(6, 4) ROWS_OF(2, 4) ROWS_OF(1, 4) break;
    }
}

#undef ROWS_OF
#undef MULTIPLY
