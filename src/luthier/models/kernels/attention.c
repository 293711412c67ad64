/* Attention over a forest, forward and backward, with its scores never in memory (flash attention, Dao 2023,
   arXiv:2307.08691). A token sees the nodes above its own and, causally, its own.

   q, out, dout, dq: (tokens, heads, size); k, v: (tokens, kv heads, size); lse: (heads, tokens). Keys are taken in blocks
   of 64 that never cross a node. Products run in one routine, C (m, 64) += A (m, k) B (k, 64), where B is packed and A
   is read by broadcasts. Its unit is a pair of bfloat16 where the processor multiplies those (AVX512-BF16), else a float.
   A task is one tree and one head, so no two tasks add to the same numbers and the order of additions is fixed. */

#ifndef SUFFIX

#define _POSIX_C_SOURCE 200112L
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include "common.h"

#define KEYS 64
#define QUERIES 48

typedef struct {
    long tokens, heads, kv_heads, size, nodes, blocks, trees;
    const long *starts, *ends, *parents; /* of nodes */
    const long *first_block;             /* of nodes: where its keys lie among all blocks */
    const long *tree_starts;             /* (trees + 1): the nodes of tree t are tree_starts[t]:tree_starts[t + 1] */
    long first_node;  /* nodes before it are looked at, but look at nothing (forward only) */
    long first_token; /* of first_node: where q and out begin */
    float scale;
} Shape;

static void *room(size_t bytes) {
    void *p = NULL;
    if (posix_memalign(&p, 64, bytes ? bytes : 64)) abort(); /* as malloc failing in torch: nothing can go on */
    return p;
}

static inline long least(long a, long b) { return a < b ? a : b; }

typedef float vf __attribute__((vector_size(64)));

#define PAIRS 1
#define UNIT float
#define NAME_(name) JOIN(name, _float)
#include "product.h"
#undef PAIRS
#undef UNIT
#undef NAME_

#ifdef __AVX512BF16__
#define PAIRS 2
#define UNIT uint32_t
#define NAME_(name) JOIN(name, _pairs)
#include "product.h"
#undef PAIRS
#undef UNIT
#undef NAME_
#endif

#define SUFFIX _bf16
#define T bf16
#define SHORT 1
#define WIDEN widen_bf16
#define NARROW narrow_bf16
#ifdef __AVX512BF16__
#define PAIRS 2
#define UNIT uint32_t
#define PRODUCT product_pairs
#else
#define PAIRS 1
#define UNIT float
#define PRODUCT product_float
#endif
#include "attention.c"
#undef SUFFIX
#undef T
#undef SHORT
#undef WIDEN
#undef NARROW
#undef PAIRS
#undef UNIT
#undef PRODUCT

#define SUFFIX _f32
#define T float
#define SHORT 0
#define WIDEN widen_f32
#define NARROW narrow_f32
#define PAIRS 1
#define UNIT float
#define PRODUCT product_float
#include "attention.c"

#else

#define NAME(name) JOIN(name, SUFFIX)

#if PAIRS == 2
static inline uint32_t NAME(unit)(T a, T b) { return (uint32_t)a | (uint32_t)b << 16; }
#else
static inline float NAME(unit)(T a, T b) {
    (void)b;
    return WIDEN(a);
}
#endif

/* 64 floats as units: of neighbors in one row, and of two rows, one above the other */
#if PAIRS == 2
static inline void NAME(beside)(const float *x, UNIT *out) {
    for (int j = 0; j < KEYS; j += 32)
        _mm512_storeu_si512(out + j / 2, (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + j + 16), _mm512_loadu_ps(x + j)));
}
static inline void NAME(above)(const float *x, const float *y, UNIT *out) {
    const __m512i turn = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5,
                                          20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    for (int j = 0; j < KEYS; j += 16) {
        __m512i both = (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(y + j), _mm512_loadu_ps(x + j));
        _mm512_storeu_si512(out + j, _mm512_permutexvar_epi16(turn, both));
    }
}
#else
static inline void NAME(beside)(const float *x, UNIT *out) { memcpy(out, x, KEYS * sizeof(float)); }
static inline void NAME(above)(const float *x, const float *y, UNIT *out) {
    (void)y;
    memcpy(out, x, KEYS * sizeof(float));
}
#endif

/* rows of x as they stand, for A: (rows, size / PAIRS) */
static void NAME(as_rows)(const T *x, long stride, long rows, long size, UNIT *out) {
    for (long i = 0; i < rows; i++)
        for (long j = 0; j < size / PAIRS; j++) out[i * (size / PAIRS) + j] = NAME(unit)(x[i * stride + j * PAIRS], x[i * stride + j * PAIRS + PAIRS - 1]);
}

/* pairs of rows of x, one above the other: (rows / PAIRS, size); a missing row is 0 */
static void NAME(as_pairs)(const T *x, long stride, long rows, long size, UNIT *out) {
    for (long i = 0; i < rows; i += PAIRS, out += size) {
        const T *a = x + i * stride, *b = a + (PAIRS - 1) * stride;
        if (i + PAIRS <= rows)
            for (long j = 0; j < size; j++) out[j] = NAME(unit)(a[j], b[j]);
        else
            for (long j = 0; j < size; j++) out[j] = NAME(unit)(a[j], 0);
    }
}

/* B whose columns are keys: (size / PAIRS, 64) */
static void NAME(keys_as_columns)(const T *x, long stride, long rows, long size, UNIT *out) {
    for (long i = 0; i < KEYS; i++)
        for (long j = 0; j < size / PAIRS; j++)
            out[j * KEYS + i] = i < rows ? NAME(unit)(x[i * stride + j * PAIRS], x[i * stride + j * PAIRS + PAIRS - 1]) : 0;
}

/* B whose rows are keys: for each 64 of `size` (64 / PAIRS, 64) */
static void NAME(keys_as_rows)(const T *x, long stride, long rows, long size, UNIT *out) {
    for (long part = 0; part < size / KEYS; part++)
        for (long i = 0; i < KEYS / PAIRS; i++) {
            const T *a = i * PAIRS < rows ? x + i * PAIRS * stride + part * KEYS : NULL;
            const T *b = i * PAIRS + PAIRS - 1 < rows ? x + (i * PAIRS + PAIRS - 1) * stride + part * KEYS : NULL;
            UNIT *o = out + (part * (KEYS / PAIRS) + i) * KEYS;
            if (a && b)
                for (long j = 0; j < KEYS; j++) o[j] = NAME(unit)(a[j], b[j]);
            else
                for (long j = 0; j < KEYS; j++) o[j] = NAME(unit)(a ? a[j] : 0, b ? b[j] : 0);
        }
}

typedef void (*NAME(Pack))(const T *, long, long, long, UNIT *);

/* Every block of every key-value head, packed: (kv heads, blocks, 64 * size / PAIRS) */
static UNIT *NAME(pack_all)(const Shape *f, const T *x, NAME(Pack) pack) {
    long each = KEYS * f->size / PAIRS;
    UNIT *out = room(sizeof(UNIT) * f->kv_heads * f->blocks * each);
#pragma omp parallel for schedule(static) collapse(2)
    for (long h = 0; h < f->kv_heads; h++)
        for (long n = 0; n < f->nodes; n++)
            for (long s = f->starts[n], b = f->first_block[n]; s < f->ends[n]; s += KEYS, b++)
                pack(x + (s * f->kv_heads + h) * f->size, f->kv_heads * f->size, least(KEYS, f->ends[n] - s), f->size,
                     out + (h * f->blocks + b) * each);
    return out;
}

/* The nodes from the root down to n; returns how many. */
static long NAME(path)(const Shape *f, long n, long *out) {
    long depth = 0;
    for (long p = n; p >= 0; p = f->parents[p]) depth++;
    long at = depth;
    for (long p = n; p >= 0; p = f->parents[p]) out[--at] = p;
    return depth;
}

/* A block of at most QUERIES queries on its way over the keys: sums so far are of exp(scores - top) */
typedef struct {
    UNIT *a, *p;      /* the queries, packed; what is left of the scores, packed */
    float *scores, *o; /* (QUERIES, KEYS); the sums of values, (QUERIES, size) */
    float top[QUERIES], sum[QUERIES];
} NAME(Queries);

static void NAME(begin)(NAME(Queries) *w, long size) {
    w->a = room(sizeof(UNIT) * QUERIES * size / PAIRS), w->p = room(sizeof(UNIT) * QUERIES * KEYS / PAIRS);
    w->scores = room(sizeof(float) * QUERIES * KEYS), w->o = room(sizeof(float) * QUERIES * size);
}

static void NAME(end)(NAME(Queries) *w) { free(w->a), free(w->p), free(w->scores), free(w->o); }

static void NAME(have_seen_nothing)(NAME(Queries) *w, long rows, long size) {
    memset(w->o, 0, sizeof(float) * rows * size);
    for (long r = 0; r < rows; r++) w->top[r] = -INFINITY, w->sum[r] = 0;
}

/* Look at one packed block of `width` keys; query r sees the first `seen + r` of them. */
static void NAME(look)(NAME(Queries) *w, long rows, long size, const UNIT *keys, const UNIT *values, long width,
                       long seen, float scale) {
    PRODUCT(rows, width, size / PAIRS, w->a, size / PAIRS, 1, keys, w->scores, KEYS, 0);
    for (long r = 0; r < rows; r++) {
        long count = least(width, seen + r);
        float *s = w->scores + r * KEYS, highest = w->top[r];
        if (count <= 0) {
            memset(w->p + r * (KEYS / PAIRS), 0, sizeof(UNIT) * KEYS / PAIRS);
            continue;
        }
        for (long j = count; j < KEYS; j++) s[j] = -INFINITY;
        float here = -INFINITY;
#pragma omp simd reduction(max : here)
        for (long j = 0; j < KEYS; j++) here = s[j] > here ? s[j] : here;
        here *= scale;
        if (here > highest) {
            float less = fast_exp(highest - here);
            if (highest == -INFINITY) less = 0;
            w->sum[r] *= less;
            for (long j = 0; j < size; j++) w->o[r * size + j] *= less;
            w->top[r] = highest = here;
        }
        float total = 0;
#pragma omp simd reduction(+ : total)
        for (long j = 0; j < KEYS; j++) {
            s[j] = j < count ? fast_exp(s[j] * scale - highest) : 0.0f;
            total += s[j];
        }
        w->sum[r] += total;
        NAME(beside)(s, w->p + r * (KEYS / PAIRS));
    }
    for (long part = 0; part < size / KEYS; part++)
        PRODUCT(rows, KEYS, (width + PAIRS - 1) / PAIRS, w->p, KEYS / PAIRS, 1,
                values + part * (KEYS / PAIRS) * KEYS, w->o + part * KEYS, size, 1);
}

static void NAME(attend_tree)(const Shape *f, long tree, long h, const T *q, const UNIT *keys, const UNIT *values,
                              T *out, float *lse) {
    long size = f->size, each = KEYS * size / PAIRS, row = f->heads * size;
    long kv = h / (f->heads / f->kv_heads);
    keys += kv * f->blocks * each;
    values += kv * f->blocks * each;
    long *path = room(sizeof(long) * f->nodes);
    NAME(Queries) w;
    NAME(begin)(&w, size);
    q -= f->first_token * row;
    out -= f->first_token * row;
    for (long n = f->tree_starts[tree]; n < f->tree_starts[tree + 1]; n++) {
        if (n < f->first_node) continue;
        long depth = NAME(path)(f, n, path), start = f->starts[n];
        for (long first = start; first < f->ends[n]; first += QUERIES) {
            long rows = least(QUERIES, f->ends[n] - first);
            NAME(as_rows)(q + first * row + h * size, row, rows, size, w.a);
            NAME(have_seen_nothing)(&w, rows, size);
            for (long step = 0; step < depth; step++) {
                long node = path[step], length = f->ends[node] - f->starts[node];
                if (node == n) length = first + rows - start; /* no query of this block sees more */
                for (long at = 0; at < length; at += KEYS) {
                    long width = least(KEYS, length - at), block = f->first_block[node] + at / KEYS;
                    NAME(look)(&w, rows, size, keys + block * each, values + block * each, width,
                               node == n ? first - start - at + 1 : width, f->scale);
                }
            }
            for (long r = 0; r < rows; r++) {
                T *to = out + (first + r) * row + h * size;
                for (long j = 0; j < size; j++) to[j] = NARROW(w.o[r * size + j] / w.sum[r]);
                lse[h * f->tokens + first + r] = w.top[r] + logf(w.sum[r]);
            }
        }
    }
    free(path);
    NAME(end)(&w);
}

void NAME(forest_attention)(const Shape *f, const T *q, const T *k, const T *v, T *out, float *lse) {
    UNIT *keys = NAME(pack_all)(f, k, NAME(keys_as_columns)), *values = NAME(pack_all)(f, v, NAME(keys_as_rows));
#pragma omp parallel for schedule(dynamic) collapse(2)
    for (long tree = 0; tree < f->trees; tree++)
        for (long h = 0; h < f->heads; h++) NAME(attend_tree)(f, tree, h, q, keys, values, out, lse);
    free(keys), free(values);
}

typedef struct {
    UNIT *keys, *value_columns, *key_rows; /* packed as pack_all does */
    float *dk, *dv;                        /* (heads, blocks, size, 64): turned, as they are added up */
} NAME(Back);

static void NAME(attend_tree_back)(const Shape *f, long tree, long h, const T *q, const T *out, const T *dout,
                                   const float *lse, const NAME(Back) * b, T *dq) {
    long size = f->size, each = KEYS * size / PAIRS, row = f->heads * size, turned = KEYS * size;
    long kv = h / (f->heads / f->kv_heads), half = QUERIES / PAIRS;
    const UNIT *keys = b->keys + kv * f->blocks * each, *value_columns = b->value_columns + kv * f->blocks * each;
    const UNIT *key_rows = b->key_rows + kv * f->blocks * each;
    long *path = room(sizeof(long) * f->nodes);
    UNIT *a = room(sizeof(UNIT) * QUERIES * size / PAIRS), *da = room(sizeof(UNIT) * QUERIES * size / PAIRS);
    UNIT *a_pairs = room(sizeof(UNIT) * size * half), *da_pairs = room(sizeof(UNIT) * size * half);
    UNIT *ds_rows = room(sizeof(UNIT) * QUERIES * KEYS / PAIRS);
    UNIT *p_pairs = room(sizeof(UNIT) * half * KEYS), *ds_pairs = room(sizeof(UNIT) * half * KEYS);
    float *p = room(sizeof(float) * QUERIES * KEYS), *ds = room(sizeof(float) * QUERIES * KEYS);
    float *o = room(sizeof(float) * QUERIES * size), delta[QUERIES];
    for (long block = f->first_block[f->tree_starts[tree]];
         block < (f->tree_starts[tree + 1] < f->nodes ? f->first_block[f->tree_starts[tree + 1]] : f->blocks); block++) {
        memset(b->dk + (h * f->blocks + block) * turned, 0, sizeof(float) * turned);
        memset(b->dv + (h * f->blocks + block) * turned, 0, sizeof(float) * turned);
    }
    for (long n = f->tree_starts[tree]; n < f->tree_starts[tree + 1]; n++) {
        long depth = NAME(path)(f, n, path), start = f->starts[n];
        for (long first = start; first < f->ends[n]; first += QUERIES) {
            long rows = least(QUERIES, f->ends[n] - first), even = (rows + PAIRS - 1) / PAIRS * PAIRS;
            const T *qs = q + first * row + h * size, *dos = dout + first * row + h * size;
            const T *outs = out + first * row + h * size;
            NAME(as_rows)(qs, row, rows, size, a);
            NAME(as_rows)(dos, row, rows, size, da);
            NAME(as_pairs)(qs, row, rows, size, a_pairs);
            NAME(as_pairs)(dos, row, rows, size, da_pairs);
            for (long r = 0; r < rows; r++) {
                float sum = 0;
#pragma omp simd reduction(+ : sum)
                for (long j = 0; j < size; j++) sum += WIDEN(dos[r * row + j]) * WIDEN(outs[r * row + j]);
                delta[r] = sum;
            }
            memset(o, 0, sizeof(float) * rows * size);
            for (long step = 0; step < depth; step++) {
                long node = path[step], length = f->ends[node] - f->starts[node];
                if (node == n) length = first + rows - start;
                for (long at = 0; at < length; at += KEYS) {
                    long width = least(KEYS, length - at), block = f->first_block[node] + at / KEYS;
                    PRODUCT(rows, width, size / PAIRS, a, size / PAIRS, 1, keys + block * each, p, KEYS, 0);
                    PRODUCT(rows, width, size / PAIRS, da, size / PAIRS, 1, value_columns + block * each, ds, KEYS, 0);
                    for (long r = 0; r < even; r++) {
                        long seen = node == n ? least(width, first + r - start - at + 1) : width;
                        if (r >= rows) seen = 0;
                        float *pr = p + r * KEYS, *dr = ds + r * KEYS, offset = r < rows ? lse[h * f->tokens + first + r] : 0;
                        float mean = r < rows ? delta[r] : 0;
                        UNIT *to = ds_rows + r * (KEYS / PAIRS);
#pragma omp simd
                        for (long j = 0; j < KEYS; j++) {
                            pr[j] = fast_exp(pr[j] * f->scale - offset);
                            dr[j] = pr[j] * (dr[j] - mean) * f->scale;
                        }
                        for (long j = seen < 0 ? 0 : seen; j < KEYS; j++) pr[j] = dr[j] = 0; /* whatever it was */
                        NAME(beside)(dr, to);
                    }
                    for (long r = 0; r < even / PAIRS; r++) {
                        const float *p0 = p + r * PAIRS * KEYS, *p1 = p0 + (PAIRS - 1) * KEYS;
                        const float *d0 = ds + r * PAIRS * KEYS, *d1 = d0 + (PAIRS - 1) * KEYS;
                        NAME(above)(p0, p1, p_pairs + r * KEYS);
                        NAME(above)(d0, d1, ds_pairs + r * KEYS);
                    }
                    for (long part = 0; part < size / KEYS; part++)
                        PRODUCT(rows, KEYS, (width + PAIRS - 1) / PAIRS, ds_rows, KEYS / PAIRS, 1,
                                key_rows + block * each + part * (KEYS / PAIRS) * KEYS, o + part * KEYS, size, 1);
                    PRODUCT(size, width, even / PAIRS, a_pairs, 1, size, ds_pairs, b->dk + (h * f->blocks + block) * turned, KEYS, 1);
                    PRODUCT(size, width, even / PAIRS, da_pairs, 1, size, p_pairs, b->dv + (h * f->blocks + block) * turned, KEYS, 1);
                }
            }
            for (long r = 0; r < rows; r++)
                for (long j = 0; j < size; j++) dq[(first + r) * row + h * size + j] = NARROW(o[r * size + j]);
        }
    }
    free(path), free(a), free(da), free(a_pairs), free(da_pairs), free(ds_rows), free(p_pairs), free(ds_pairs);
    free(p), free(ds), free(o);
}

/* Add up the heads that share a key-value head, and turn back: (heads, blocks, size, 64) -> (tokens, kv heads, size) */
static void NAME(gather)(const Shape *f, const float *turned, T *out) {
    long size = f->size, shared = f->heads / f->kv_heads, each = KEYS * size;
#pragma omp parallel for schedule(static) collapse(2)
    for (long kv = 0; kv < f->kv_heads; kv++)
        for (long n = 0; n < f->nodes; n++) {
            float *sum = room(sizeof(float) * each);
            for (long s = f->starts[n], block = f->first_block[n]; s < f->ends[n]; s += KEYS, block++) {
                memcpy(sum, turned + (kv * shared * f->blocks + block) * each, sizeof(float) * each);
                for (long g = 1; g < shared; g++) {
                    const float *other = turned + ((kv * shared + g) * f->blocks + block) * each;
                    for (long j = 0; j < each; j++) sum[j] += other[j];
                }
                long rows = least(KEYS, f->ends[n] - s);
                for (long i = 0; i < rows; i++)
                    for (long j = 0; j < size; j++) out[((s + i) * f->kv_heads + kv) * size + j] = NARROW(sum[j * KEYS + i]);
            }
            free(sum);
        }
}

void NAME(forest_attention_back)(const Shape *f, const T *q, const T *k, const T *v, const T *out, const T *dout,
                                 const float *lse, T *dq, T *dk, T *dv) {
    NAME(Back) b;
    b.keys = NAME(pack_all)(f, k, NAME(keys_as_columns));
    b.value_columns = NAME(pack_all)(f, v, NAME(keys_as_columns));
    b.key_rows = NAME(pack_all)(f, k, NAME(keys_as_rows));
    b.dk = room(sizeof(float) * f->heads * f->blocks * KEYS * f->size);
    b.dv = room(sizeof(float) * f->heads * f->blocks * KEYS * f->size);
#pragma omp parallel for schedule(dynamic) collapse(2)
    for (long tree = 0; tree < f->trees; tree++)
        for (long h = 0; h < f->heads; h++) NAME(attend_tree_back)(f, tree, h, q, out, dout, lse, &b, dq);
    NAME(gather)(f, b.dk, dk);
    NAME(gather)(f, b.dv, dv);
    free(b.keys), free(b.value_columns), free(b.key_rows), free(b.dk), free(b.dv);
}

static inline vf NAME(wide)(const T *x) { /* 16 numbers */
#if SHORT
    typedef uint16_t narrow __attribute__((vector_size(32)));
    typedef uint32_t bits __attribute__((vector_size(64)));
    narrow n;
    memcpy(&n, x, 32);
    return (vf)(__builtin_convertvector(n, bits) << 16);
#else
    vf v;
    memcpy(&v, x, 64);
    return v;
#endif
}

static inline float NAME(total)(vf x) {
#ifdef __AVX512F__
    return _mm512_reduce_add_ps((__m512)x);
#else
    float sum = 0;
    for (int i = 0; i < 16; i++) sum += x[i];
    return sum;
#endif
}

/* (shared, KEYS) products of each query with `width` keys */
static void NAME(scores_of)(const float *query, const T *k, long shared, long width, long size, float *scores) {
    for (long i = 0; i < width; i++)
        for (long part = 0; part < size; part += 64) {
            vf key[4], q;
            for (int j = 0; j < 4; j++) key[j] = NAME(wide)(k + i * size + part + j * 16);
            for (long g = 0; g < shared; g++) {
                vf sum = {0};
                for (int j = 0; j < 4; j++) {
                    memcpy(&q, query + g * size + part + j * 16, 64);
                    sum += q * key[j];
                }
                scores[g * KEYS + i] = (part ? scores[g * KEYS + i] : 0) + NAME(total)(sum);
            }
        }
}

/* sum_v (shared, size) += scores (shared, KEYS) values (width, size); four heads and 64 numbers at a time */
static void NAME(add_values)(const float *scores, const T *v, long shared, long width, long size, float *sum_v) {
    for (long part = 0; part < size; part += 64)
        for (long first = 0; first < shared; first += 4) {
            vf sum[4][4];
            long heads = least(4, shared - first);
            memset(sum, 0, sizeof sum);
            for (long g = 0; g < heads; g++) memcpy(sum[g], sum_v + (first + g) * size + part, 256);
#define ADD(count)                                                                                  \
    for (long i = 0; i < width; i++) {                                                              \
        vf value[4];                                                                                \
        for (int j = 0; j < 4; j++) value[j] = NAME(wide)(v + i * size + part + j * 16);            \
        for (int g = 0; g < count; g++)                                                             \
            for (int j = 0; j < 4; j++) sum[g][j] += scores[(first + g) * KEYS + i] * value[j];     \
    }
            switch (heads) {
                case 1: ADD(1) break;
                case 2: ADD(2) break;
                case 3: ADD(3) break;
                default: ADD(4)
            }
#undef ADD
            for (long g = 0; g < heads; g++) memcpy(sum_v + (first + g) * size + part, sum[g], 256);
        }
}

/* Keys and values that all rows begin with, (kv heads, prefix, size), packed as `look` wants them */
void NAME(pack_prefix)(const T *k, const T *v, UNIT *keys, UNIT *values, long kv_heads, long prefix, long size) {
    long blocks = (prefix + KEYS - 1) / KEYS, each = KEYS * size / PAIRS;
    for (long c = 0; c < kv_heads; c++)
        for (long b = 0; b < blocks; b++) {
            long from = (c * prefix + b * KEYS) * size, width = least(KEYS, prefix - b * KEYS), to = (c * blocks + b) * each;
            NAME(keys_as_columns)(k + from, size, width, size, keys + to);
            NAME(keys_as_rows)(v + from, size, width, size, values + to);
        }
}

/* Where the queries of all rows stand after the prefix: o (queries, size), top and sum (queries) */
static void NAME(look_at_prefix)(const T *q, const UNIT *keys, const UNIT *values, float *o, float *top, float *sum,
                                 long rows, long kv_heads, long shared, long size, long prefix, float scale) {
    long blocks = (prefix + KEYS - 1) / KEYS, each = KEYS * size / PAIRS, queries = rows * shared;
#pragma omp parallel for schedule(dynamic) collapse(2)
    for (long c = 0; c < kv_heads; c++)
        for (long first = 0; first < queries; first += QUERIES) {
            long count = least(QUERIES, queries - first), place[QUERIES];
            NAME(Queries) w;
            NAME(begin)(&w, size);
            for (long i = 0; i < count; i++) {
                place[i] = ((first + i) / shared * kv_heads + c) * shared + (first + i) % shared;
                NAME(as_rows)(q + place[i] * size, size, 1, size, w.a + i * (size / PAIRS));
            }
            NAME(have_seen_nothing)(&w, count, size);
            for (long b = 0; b < blocks; b++) {
                long width = least(KEYS, prefix - b * KEYS);
                NAME(look)(&w, count, size, keys + (c * blocks + b) * each, values + (c * blocks + b) * each, width, width, scale);
            }
            for (long i = 0; i < count; i++) {
                memcpy(o + place[i] * size, w.o + i * size, sizeof(float) * size);
                top[place[i]] = w.top[i], sum[place[i]] = w.sum[i];
            }
            NAME(end)(&w);
        }
}

/* One new token a row: its key and value join the row's own, then it attends to the prefix that all share and to its row.
   q, out: (rows, heads, size); new_k, new_v: (rows, kv heads, size); keys, values: (rows, kv heads, room, size), of which
   the first lengths[r] are taken; prefix_k, prefix_v: from pack_prefix. */
void NAME(decode_attention)(const T *q, const T *new_k, const T *new_v, T *keys, T *values, const long *lengths,
                            const UNIT *prefix_k, const UNIT *prefix_v, T *out, long rows, long kv_heads, long shared,
                            long size, long capacity, long prefix, float scale) {
    long heads = kv_heads * shared;
    float *sums = room(sizeof(float) * rows * heads * (size + 2)), *tops = sums + rows * heads * size, *totals = tops + rows * heads;
    memset(sums, 0, sizeof(float) * rows * heads * (size + 2));
    if (prefix)
        NAME(look_at_prefix)(q, prefix_k, prefix_v, sums, tops, totals, rows, kv_heads, shared, size, prefix, scale);
    else
        for (long i = 0; i < rows * heads; i++) tops[i] = -INFINITY;
#pragma omp parallel for schedule(dynamic, 2) collapse(2)
    for (long r = 0; r < rows; r++)
        for (long c = 0; c < kv_heads; c++) {
            long at = r * kv_heads + c, length = lengths[r];
            memcpy(keys + (at * capacity + length) * size, new_k + at * size, sizeof(T) * size);
            memcpy(values + (at * capacity + length) * size, new_v + at * size, sizeof(T) * size);
            const T *k = keys + at * capacity * size, *v = values + at * capacity * size;
            float *query = room(sizeof(float) * shared * (size + KEYS)), *scores = query + shared * size;
            float *sum_v = sums + at * shared * size, *top = tops + at * shared, *sum = totals + at * shared;
            for (long j = 0; j < shared * size; j++) query[j] = WIDEN(q[at * shared * size + j]) * scale;
            for (long first = 0; first <= length; first += KEYS) {
                long width = least(KEYS, length + 1 - first);
                NAME(scores_of)(query, k + first * size, shared, width, size, scores);
                for (long g = 0; g < shared; g++) {
                    float *s = scores + g * KEYS, *sv = sum_v + g * size, here = top[g], total = 0;
                    for (long i = 0; i < width; i++) here = s[i] > here ? s[i] : here;
                    float less = top[g] == -INFINITY ? 0 : fast_exp(top[g] - here);
                    for (long j = 0; j < size; j++) sv[j] *= less;
#pragma omp simd reduction(+ : total)
                    for (long i = 0; i < width; i++) {
                        s[i] = fast_exp(s[i] - here);
                        total += s[i];
                    }
                    sum[g] = sum[g] * less + total;
                    top[g] = here;
                }
                NAME(add_values)(scores, v + first * size, shared, width, size, sum_v);
            }
            for (long g = 0; g < shared; g++)
                for (long j = 0; j < size; j++) out[(at * shared + g) * size + j] = NARROW(sum_v[g * size + j] / sum[g]);
            free(query);
        }
    free(sums);
}

#undef NAME
#endif
