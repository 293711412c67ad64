/* Matrices are quantized, and rows of them become numbers again. See models/quantize for each format, and a plain
   version beside it.

   Values are made in float32 and rounded once to T, so both types hold what the plain version holds, bit by bit. Rows
   are split over OpenMP threads. Included from itself for bfloat16 and float32, as elementwise.c is. */

#ifndef SUFFIX

#include <stddef.h>

#include "common.h"
#ifdef __AVX512BW__
#include <immintrin.h>
#endif

#define SMALL 65536 /* numbers below which a second thread costs more than it saves */

static const float NF4[16] = {-1.0f,
                              -0.6961928009986877f,
                              -0.5250730514526367f,
                              -0.39491748809814453f,
                              -0.28444138169288635f,
                              -0.18477343022823334f,
                              -0.09105003625154495f,
                              0.0f,
                              0.07958029955625534f,
                              0.16093020141124725f,
                              0.24611230194568634f,
                              0.33791524171829224f,
                              0.44070982933044434f,
                              0.5626170039176941f,
                              0.7229568362236023f,
                              1.0f};

/* half precision, subnormal numbers included */
static inline float widen_f16(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, 2);
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, rest = (uint32_t)(h & 0x7fffu) << 13;
    float magnitude;
    if ((h & 0x7c00u) == 0x7c00u) {
        rest |= 0x7f800000u; /* infinity and NaN */
        memcpy(&magnitude, &rest, 4);
    } else {
        memcpy(&magnitude, &rest, 4);
        magnitude *= 0x1p112f; /* the exponents' biases are 112 apart */
    }
    uint32_t bits;
    memcpy(&bits, &magnitude, 4);
    bits |= sign;
    memcpy(&magnitude, &bits, 4);
    return magnitude;
}

/* scale and minimum of the eight parts of a block of Q4_K or Q5_K: six bits each in twelve bytes */
static inline void k_scales(const uint8_t *s, int part, float *scale, float *least) {
    int a, b;
    if (part < 4) {
        a = s[part] & 63;
        b = s[part + 4] & 63;
    } else {
        a = (s[part + 4] & 15) | ((s[part - 4] >> 2) & 48);
        b = (s[part + 4] >> 4) | ((s[part] >> 2) & 48);
    }
    *scale = (float)a;
    *least = (float)b;
}

enum { Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q4_K = 12, Q5_K = 13, Q6_K = 14 }; /* as GGUF files name them */

#define SELF "dequantize.c"
#include "both_types.h"

#else

#define NAME(name) JOIN(name, SUFFIX)

/* 64 numbers from 32 bytes, the first 32 in their low halves: table[code] */
static inline void NAME(look_up)(const uint8_t *codes, const T *table, T *out, long count) {
    if (count == 64) {
#ifdef __AVX512BW__
        __m256i bytes = _mm256_loadu_si256((const __m256i *)codes);
        if (sizeof(T) == 2) {
            __m512i entries = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)table));
            __m512i pairs = _mm512_cvtepu8_epi16(bytes), low = _mm512_and_si512(pairs, _mm512_set1_epi16(15));
            _mm512_storeu_si512(out, _mm512_permutexvar_epi16(low, entries));
            _mm512_storeu_si512(out + 32, _mm512_permutexvar_epi16(_mm512_srli_epi16(pairs, 4), entries));
            return;
        }
#endif
        for (int j = 0; j < 32; j++) {
            out[j] = table[codes[j] & 15];
            out[j + 32] = table[codes[j] >> 4];
        }
    } else
        for (long j = 0; j < count; j++) out[j] = table[j < 32 ? codes[j] & 15 : codes[j - 32] >> 4];
}

/* tops (rows, blocks): the largest absolute value of each block of a row */
void NAME(block_tops)(const T *weight, float *tops, long rows, long width, long size) {
    long blocks = (width + size - 1) / size;
#pragma omp parallel for schedule(static) if (rows * width > SMALL)
    for (long i = 0; i < rows; i++)
        for (long j = 0; j < blocks; j++) {
            const T *w = weight + i * width + j * size;
            long left = width - j * size, count = left < size ? left : size;
            float top = 0;
#pragma omp simd reduction(max : top)
            for (long k = 0; k < count; k++) {
                float v = __builtin_fabsf(WIDEN(w[k]));
                top = v > top ? v : top;
            }
            tops[i * blocks + j] = top;
        }
}

/* the nearest code of each number divided by its block's top: as many as there are middles between codes below it */
void NAME(pack_nf4)(const T *weight, const float *tops, uint8_t *codes, long rows, long width) {
    long blocks = (width + 63) / 64;
#pragma omp parallel for schedule(static) if (rows * width > SMALL)
    for (long i = 0; i < rows; i++)
        for (long j = 0; j < blocks; j++) {
            const T *w = weight + i * width + j * 64;
            long left = width - j * 64, count = left < 64 ? left : 64;
            float top = tops[i * blocks + j], scaled[64] = {0};
            int code[64] = {0};
            if (top > 0)
                for (long k = 0; k < count; k++) scaled[k] = WIDEN(w[k]) / top;
            for (int c = 0; c < 15; c++) {
                float middle = (NF4[c] + NF4[c + 1]) / 2;
#pragma omp simd
                for (int k = 0; k < 64; k++) code[k] += scaled[k] > middle;
            }
            uint8_t *out = codes + (i * blocks + j) * 32;
            for (int k = 0; k < 32; k++) out[k] = (uint8_t)(code[k] | code[k + 32] << 4);
        }
}

/* codes (rows, width): numbers divided by their block's scale, rounded to even */
void NAME(pack_int8)(const T *weight, const float *scales, int8_t *codes, long rows, long width) {
    long blocks = (width + 127) / 128;
#pragma omp parallel for schedule(static) if (rows * width > SMALL)
    for (long i = 0; i < rows; i++)
        for (long j = 0; j < blocks; j++) {
            const T *w = weight + i * width + j * 128;
            int8_t *out = codes + i * width + j * 128;
            float scale = scales[i * blocks + j];
            long left = width - j * 128, count = left < 128 ? left : 128;
            if (scale > 0)
#pragma omp simd
                for (long k = 0; k < count; k++) out[k] = (int8_t)__builtin_rintf(WIDEN(w[k]) / scale);
            else
                memset(out, 0, count);
        }
}

/* codes: (rows, blocks, 32) bytes of whole matrices' rows; the absolute maximum of block b of the matrix is
   offset + scales[b / 256] * levels[b]; `first` is the number of the first block here */
void NAME(expand_nf4)(const uint8_t *codes, const int8_t *levels, const float *scales, const float *offset, T *out,
                      long rows, long width, long first) {
    long blocks = (width + 63) / 64;
#pragma omp parallel for schedule(static) if (rows * width > SMALL)
    for (long i = 0; i < rows; i++)
        for (long j = 0; j < blocks; j++) {
            long b = first + i * blocks + j;
            float product = scales[b / 256] * (float)levels[b], top = *offset + product;
            T table[16];
#pragma omp simd
            for (int c = 0; c < 16; c++) table[c] = NARROW(NF4[c] * top);
            long left = width - j * 64;
            NAME(look_up)(codes + (i * blocks + j) * 32, table, out + i * width + j * 64, left < 64 ? left : 64);
        }
}

/* codes (rows, width), scales (rows, blocks of 128) */
void NAME(expand_int8)(const int8_t *codes, const float *scales, T *out, long rows, long width) {
    long blocks = (width + 127) / 128;
#pragma omp parallel for schedule(static) if (rows * width > SMALL)
    for (long i = 0; i < rows; i++)
        for (long j = 0; j < blocks; j++) {
            const int8_t *c = codes + i * width + j * 128;
            T *o = out + i * width + j * 128;
            float scale = scales[i * blocks + j];
            long left = width - j * 128, count = left < 128 ? left : 128;
#pragma omp simd
            for (long k = 0; k < count; k++) o[k] = NARROW(scale * (float)c[k]);
        }
}

/* low halves of 16 bytes, then high halves, each with its fifth bit from `high`; code `zero` stands for `least` */
static inline void NAME(halves)(const uint8_t *q, uint32_t high, int zero, float scale, float least, T *out) {
    for (int h = 0; h < 2; h++)
#pragma omp simd
        for (int k = 0; k < 16; k++) {
            int code = ((q[k] >> (4 * h)) & 15) | (((high >> (k + 16 * h)) & 1) << 4);
            out[16 * h + k] = NARROW(scale * (float)(code - zero) + least);
        }
}

static inline void NAME(block_k)(const uint8_t *p, int five, T *out) {
    float d = widen_f16(p), dmin = widen_f16(p + 2);
    const uint8_t *scales = p + 4, *high = p + 16, *q = five ? p + 48 : p + 16;
    for (int part = 0; part < 8; part++) {
        float scale, least;
        k_scales(scales, part, &scale, &least);
        scale *= d;
        least *= dmin;
        const uint8_t *from = q + (part / 2) * 32;
        T *o = out + part * 32;
        int shift = (part & 1) * 4;
        if (five) {
#pragma omp simd
            for (int k = 0; k < 32; k++) {
                int code = ((from[k] >> shift) & 15) | (((high[k] >> part) & 1) << 4);
                o[k] = NARROW(scale * (float)code - least);
            }
        } else {
#pragma omp simd
            for (int k = 0; k < 32; k++) o[k] = NARROW(scale * (float)((from[k] >> shift) & 15) - least);
        }
    }
}

static inline void NAME(block_6k)(const uint8_t *p, T *out) {
    float d = widen_f16(p + 208);
    const int8_t *scales = (const int8_t *)(p + 192);
    for (int part = 0; part < 8; part++) { /* of 32 numbers, with two scales */
        const uint8_t *low = p + (part / 4) * 64 + (part & 1) * 32, *high = p + 128 + (part / 4) * 32;
        int shift = (part & 2) * 2, up = (part & 3) * 2;
        for (int h = 0; h < 2; h++) {
            float scale = d * (float)scales[part * 2 + h];
            T *o = out + part * 32 + h * 16;
#pragma omp simd
            for (int k = 0; k < 16; k++) {
                int code = ((low[h * 16 + k] >> shift) & 15) | (((high[h * 16 + k] >> up) & 3) << 4);
                o[k] = NARROW(scale * (float)(code - 32));
            }
        }
    }
}

static inline uint32_t NAME(bits)(const uint8_t *p) {
    uint32_t high;
    memcpy(&high, p, 4);
    return high;
}

static inline void NAME(block)(int kind, const uint8_t *p, T *out) {
    float d = widen_f16(p);
    switch (kind) {
        case Q4_0: NAME(halves)(p + 2, 0, 8, d, -0.0f, out); break;
        case Q4_1: NAME(halves)(p + 4, 0, 0, d, widen_f16(p + 2), out); break;
        case Q5_0: NAME(halves)(p + 6, NAME(bits)(p + 2), 16, d, -0.0f, out); break;
        case Q5_1: NAME(halves)(p + 8, NAME(bits)(p + 4), 0, d, widen_f16(p + 2), out); break;
        case Q4_K: NAME(block_k)(p, 0, out); break;
        case Q5_K: NAME(block_k)(p, 1, out); break;
        case Q6_K: NAME(block_6k)(p, out); break;
        case Q8_0: {
            const int8_t *q = (const int8_t *)(p + 2);
#pragma omp simd
            for (int k = 0; k < 32; k++) out[k] = NARROW(d * (float)q[k]);
            break;
        }
    }
}

/* data: (rows, blocks, bytes) as it lies in a GGUF file; a block holds `size` numbers */
void NAME(expand_gguf)(const uint8_t *data, T *out, long rows, long blocks, long bytes, long size, long kind) {
#pragma omp parallel for schedule(static) if (rows * blocks * size > SMALL)
    for (long i = 0; i < rows; i++)
        for (long j = 0; j < blocks; j++)
            NAME(block)((int)kind, data + (i * blocks + j) * bytes, out + (i * blocks + j) * size);
}

#undef NAME
#endif
