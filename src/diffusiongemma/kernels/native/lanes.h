/* Vectors of float32, small operations on rows, and products with weights where torch has them.

   Every element of a product is summed in one order, whatever tile it falls into and whoever is
   beside it. Written with the vector extensions of gcc (from 12) and clang. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif
#define TILE (LANES / 4) /* weights rows a tile; it has 4 tokens, so a sum for every lane */
#define HIGH (LANES / 2)  /* rows that are mixed together */
#define WIDEST 1024      /* channels that are summed, at most */
/* Has a compiler load a value once, where gcc would load it for every use. */
#if defined(__x86_64__) && defined(__AVX__)
#define KEEP(x) __asm__("" : "+v"(x))
#else
#define KEEP(x)
#endif
#define IN static inline __attribute__((always_inline))
#define OUT static __attribute__((noinline)) /* large, and many places call it */

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t whole __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t half_vec __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

IN vec load(const void *from, int64_t place, int half) {
    if (!half) return *(const vec *)((const float *)from + place);
    half_vec bits = *(const half_vec *)((const uint16_t *)from + place);
    return (vec)(__builtin_convertvector(bits, whole) << 16);
}
IN float one(const void *from, int64_t place, int half) {
    if (!half) return ((const float *)from)[place];
    uint32_t bits = (uint32_t)((const uint16_t *)from)[place] << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
IN vec spread(float x) { return (vec){} + x; }
IN void store(float *to, vec x) { *(vec *)to = x; }

IN vec pick(whole where, vec yes, vec no) {
    return (vec)((where & (whole)yes) | (~where & (whole)no));
}

/* Two vectors of sums become one: each half as long, the first's, then the second's, by segments
   of n lanes. Four such rounds leave one sum a lane. */
#if LANES == 16
IN vec fold8(vec a, vec b) {
    return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
}
IN vec fold4(vec a, vec b) {
    return __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
           __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
}
IN vec fold2(vec a, vec b) {
    return __builtin_shufflevector(a, b, 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) +
           __builtin_shufflevector(a, b, 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
}
IN vec fold1(vec a, vec b) {
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
           __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}
#define LOWER 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define UPPER 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
/* Lane l of the result is the sum of sums[l]. */
IN vec folded(const vec *sums) {
    vec t[8], u[4];
    for (int i = 0; i < 8; i++) {
        int at = (i & 1) << 2 | (i & 2) | i >> 2; /* 3 bits reversed */
        t[i] = fold8(sums[2 * at], sums[2 * at + 1]);
    }
    for (int i = 0; i < 4; i++) u[i] = fold4(t[i], t[i + 4]);
    return fold1(fold2(u[0], u[2]), fold2(u[1], u[3]));
}
#else
#define LOWER 0, 8, 1, 9, 2, 10, 3, 11
#define UPPER 4, 12, 5, 13, 6, 14, 7, 15
IN vec fold4(vec a, vec b) {
    return __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11) +
           __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
}
IN vec fold2(vec a, vec b) {
    return __builtin_shufflevector(a, b, 0, 1, 4, 5, 8, 9, 12, 13) +
           __builtin_shufflevector(a, b, 2, 3, 6, 7, 10, 11, 14, 15);
}
IN vec fold1(vec a, vec b) {
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14) +
           __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
}
IN vec folded(const vec *sums) {
    vec a = fold4(sums[0], sums[1]), b = fold4(sums[4], sums[5]);
    vec c = fold4(sums[2], sums[3]), d = fold4(sums[6], sums[7]);
    return fold1(fold2(a, c), fold2(b, d));
}
#endif

/* LANES rows of LANES become columns: each round deals two halves out like a pack of cards. */
IN void transposed(vec *rows) {
    for (int round = 1; round < LANES; round *= 2) {
        vec dealt[LANES];
        for (int i = 0; i < LANES / 2; i++) {
            dealt[2 * i] = __builtin_shufflevector(rows[i], rows[i + LANES / 2], LOWER);
            dealt[2 * i + 1] = __builtin_shufflevector(rows[i], rows[i + LANES / 2], UPPER);
        }
        memcpy(rows, dealt, sizeof dealt);
    }
}

IN float sum(vec x) {
    float lanes[LANES];
    store(lanes, x);
    for (int n = LANES / 2; n; n /= 2)
        for (int i = 0; i < n; i++) lanes[i] += lanes[i + n];
    return lanes[0];
}

/* e^x to two units in the last place (Cephes' polynomial), for x up to 88; zero below -87. */
IN vec exponential(vec x) {
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to whole numbers */
    whole gone = x < -87.0f;
    x = pick(x > 88.0f, (vec){} + 88.0f, x);
    x = pick(gone, (vec){}, x);
    vec n = (x * 1.44269504088896341f + magic) - magic;
    x = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    vec p = (vec){} + 1.9875691500e-4f;
    p = p * x + 1.3981999507e-3f;
    p = p * x + 8.3334519073e-3f;
    p = p * x + 4.1665795894e-2f;
    p = p * x + 1.6666665459e-1f;
    p = p * x + 5.0000001201e-1f;
    p = p * x * x + x + 1.0f;
    p *= (vec)((__builtin_convertvector(n, whole) + 127) << 23);
    return pick(gone, (vec){}, p);
}

/* ---- small operations on rows ---- */

/* The RMS norm of a row of n; weight may be null. */
OUT void normed(const float *x, const void *weight, int64_t n, float eps, int half, float *to) {
    vec squares = {};
    for (int64_t i = 0; i < n; i += LANES) squares += load(x, i, 0) * load(x, i, 0);
    float scale = 1.0f / sqrtf(sum(squares) / (float)n + eps);
    for (int64_t i = 0; i < n; i += LANES) {
        vec y = load(x, i, 0) * scale;
        if (weight) y *= load(weight, i, half);
        store(to + i, y);
    }
}
/* x += norm(y) */
OUT void joined(float *x, const float *y, const void *weight, int64_t n, float eps, int half,
               float *scratch) {
    normed(y, weight, n, eps, half, scratch);
    for (int64_t i = 0; i < n; i += LANES) store(x + i, load(x, i, 0) + load(scratch, i, 0));
}
/* Channel i turns with channel i + n/2; the sine has its sign for both. */
OUT void turned(float *x, const float *cos, const float *sin, int64_t n) {
    for (int64_t i = 0; i < n / 2; i += 8)
        for (int64_t j = i; j < i + 8; j++) {
            float low = x[j], high = x[j + n / 2];
            x[j] = low * cos[j] + high * sin[j];
            x[j + n / 2] = high * cos[j + n / 2] + low * sin[j + n / 2];
        }
}
/* gelu_tanh(gate) * up, as gate / (1 + e^-2u): the same function. */
OUT void gated(const float *gate, const float *up, int64_t n, float *to) {
    for (int64_t i = 0; i < n; i += LANES) {
        vec x = load(gate, i, 0);
        vec u = 1.5957691216057308f * (x + 0.044715f * x * x * x);
        store(to + i, x / (1.0f + exponential(-u)) * load(up, i, 0));
    }
}

/* ---- products ---- */

/* Four rows of x, from r on, times a tile of weights that is float32 by now. */
IN void tile(const float *x, int64_t per_x, int64_t high, const float *const *w, int64_t wide,
             int64_t n, float *y, int64_t per_y) {
    vec sums[4 * TILE];
    const float *from[4];
    for (int i = 0; i < 4; i++) from[i] = x + (i < high ? i : 0) * per_x;
    for (int i = 0; i < 4 * TILE; i++) sums[i] = (vec){};
    for (int64_t c = 0; c < n; c += LANES) {
        vec b[TILE];
        for (int j = 0; j < TILE; j++) {
            b[j] = load(w[j], c, 0);
            KEEP(b[j]);
        }
        for (int i = 0; i < 4; i++) {
            vec a = load(from[i], c, 0);
            KEEP(a);
            for (int j = 0; j < TILE; j++) sums[i * TILE + j] += a * b[j];
        }
    }
    float done[LANES];
    store(done, folded(sums));
    for (int64_t i = 0; i < high; i++) memcpy(y + i * per_y, done + i * TILE, 4 * wide);
}

#if LANES == 16 && defined(__AVX512BF16__) && defined(__AVX512BW__)
#define PAIRS 1 /* the processor multiplies bfloat16 by twos and adds up in float32: twice as fast */
/* The same with x and weights in bfloat16. */
IN void tile_of_pairs(const uint16_t *x, int64_t high, const uint16_t *const *w, int64_t wide,
                      int64_t n, float *y, int64_t per_y) {
    __m512 sums[4 * TILE];
    const uint16_t *from[4];
    for (int i = 0; i < 4; i++) from[i] = x + (i < high ? i : 0) * n;
    for (int i = 0; i < 4 * TILE; i++) sums[i] = _mm512_setzero_ps();
    for (int64_t c = 0; c < n; c += 2 * LANES) {
        __mmask32 there = n - c < 2 * LANES ? 0xffff : 0xffffffff;
        __m512i b[TILE];
        for (int j = 0; j < TILE; j++) {
            b[j] = _mm512_maskz_loadu_epi16(there, w[j] + c);
            KEEP(b[j]);
        }
        for (int i = 0; i < 4; i++) {
            __m512i a = _mm512_maskz_loadu_epi16(there, from[i] + c);
            KEEP(a);
            for (int j = 0; j < TILE; j++)
                sums[i * TILE + j] =
                    _mm512_dpbf16_ps(sums[i * TILE + j], (__m512bh)a, (__m512bh)b[j]);
        }
    }
    float done[LANES];
    store(done, folded((const vec *)sums));
    for (int64_t i = 0; i < high; i++) memcpy(y + i * per_y, done + i * TILE, 4 * wide);
}
IN void narrowed(const float *x, int64_t n, uint16_t *to) {
    for (int64_t i = 0; i < n; i += LANES)
        _mm256_storeu_si256((__m256i *)(to + i), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(x + i)));
}
#else
#define PAIRS 0
#endif

/* y (rows, outs) = x (rows, n) @ w (outs, n).T; n is at most WIDEST, rows of y are per_y apart.
   `narrow` has room for x in bfloat16, which it becomes where that is fast and weights are so. */
OUT void product(const float *x, int64_t rows, const void *w, int64_t outs, int64_t n, int half,
                 float *y, int64_t per_y, uint16_t *narrow) {
    float widened[TILE * WIDEST];
    const float *from[TILE];
    const int widen = half && !PAIRS, size = half ? 2 : 4;
#if PAIRS
    const uint16_t *pairs[TILE];
    if (half) narrowed(x, rows * n, narrow);
#else
    (void)narrow;
#endif
    for (int64_t o = 0; o < outs; o += TILE) {
        int64_t wide = outs - o < TILE ? outs - o : TILE;
        for (int j = 0; j < TILE; j++) {
            int64_t place = (o + (j < wide ? j : 0)) * n;
            from[j] = widen ? widened + j * WIDEST : (const float *)w + place;
#if PAIRS
            pairs[j] = (const uint16_t *)w + place;
#endif
            for (int64_t c = 0; widen && c < n; c += LANES)
                store(widened + j * WIDEST + c, load(w, place + c, 1));
        }
        for (int64_t r = 0; r < rows; r += 4) {
            if (!widen && o + 2 * TILE <= outs) { /* a share of the weights that come next */
                const char *next = (const char *)w + (o + TILE) * n * size;
                int64_t bytes = TILE * n * size, share = (bytes * 4 / rows + 63) / 64 * 64;
                for (int64_t i = share * (r / 4); i < share * (r / 4 + 1) && i < bytes; i += 64)
                    __builtin_prefetch(next + i);
            }
            int64_t high = rows - r < 4 ? rows - r : 4;
            float *to = y + r * per_y + o;
#if PAIRS
            if (half) tile_of_pairs(narrow + r * n, high, pairs, wide, n, to, per_y);
            else
#endif
                tile(x + r * n, n, high, from, wide, n, to, per_y);
        }
    }
}
/* y (rows, n) += p (rows, count) @ v (count, n), summed from the first of count to the last. */
OUT void mixed(const float *p, int64_t per_p, int64_t rows, const float *v, int64_t per_v,
               int64_t count, int64_t n, float *y, int64_t per_y) {
    for (int64_t c = 0; c < n; c += 2 * LANES)
        for (int64_t r = 0; r < rows; r += HIGH) {
            int64_t next = c + LANES < n ? c + LANES : c; /* a lone last vector is done twice */
            int64_t at[HIGH];
            vec left[HIGH], right[HIGH];
            for (int i = 0; i < HIGH; i++) {
                at[i] = r + (r + i < rows ? i : 0);
                left[i] = load(y, at[i] * per_y + c, 0), right[i] = load(y, at[i] * per_y + next, 0);
            }
            for (int64_t k = 0; k < count; k++) {
                vec b = load(v, k * per_v + c, 0), d = load(v, k * per_v + next, 0);
                KEEP(b);
                KEEP(d);
                for (int i = 0; i < HIGH; i++) {
                    vec share = spread(p[at[i] * per_p + k]);
                    KEEP(share);
                    left[i] += share * b, right[i] += share * d;
                }
            }
            for (int i = 0; i < HIGH && r + i < rows; i++) {
                store(y + at[i] * per_y + c, left[i]);
                store(y + at[i] * per_y + next, right[i]);
            }
        }
}
/* e^(x - max) of a row in place; what it sums to. */
OUT float softened(float *x, int64_t n) {
    float most = x[0], last[LANES];
    vec mosts = (vec){} + most, total = {};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) mosts = pick(load(x, i, 0) > mosts, load(x, i, 0), mosts);
    for (int j = 0; j < LANES; j++) most = mosts[j] > most ? mosts[j] : most;
    for (; i < n; i++) most = x[i] > most ? x[i] : most;
    i = 0;
    for (; i + LANES <= n; i += LANES) {
        vec y = exponential(load(x, i, 0) - most);
        store(x + i, y), total += y;
    }
    if (i < n) {
        for (int64_t j = 0; j < LANES; j++) last[j] = i + j < n ? x[i + j] - most : 0;
        store(last, exponential(load(last, 0, 0)));
        for (int64_t j = n - i; j < LANES; j++) last[j] = 0;
        memcpy(x + i, last, 4 * (n - i));
        total += load(last, 0, 0);
    }
    return sum(total);
}

/* bfloat16 keeps the upper half of a float, rounded to even: what a later pass would read. */
OUT void rounded(float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, 4);
        bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
        memcpy(x + i, &bits, 4);
    }
}
