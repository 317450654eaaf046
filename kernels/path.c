/* The loops over activations, for one kind of processor. The build compiles this file once for each, with -DPATH=its name.
 *
 * Only the dot product of bytes, the fused multiply-add, and the maximum are written for each kind; the compiler's vectors
 * serve all else. Outside of `attend` and the GELU nothing is fused, so that all paths give the same bits.
 */
#include "path.h"

#include <float.h>

#define JOINED_(a, b) a##b
#define JOINED(a, b) JOINED_(a, b)
#define TEXT_(a) #a
#define TEXT(a) TEXT_(a)
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

#if defined(__AVX512F__)
enum { LANE = 16, PASS = 8, QUERIES = 4, KEYS = 6 };
#elif defined(__AVX2__)
enum { LANE = 8, PASS = 8, QUERIES = 2, KEYS = 4 };
#else
enum { LANE = 4, PASS = 4, QUERIES = 2, KEYS = 4 };
#endif
/* LANE: numbers in a register. PASS: registers of tokens that one pass over the words meets. `attend` multiplies QUERIES
 * registers of queries with KEYS keys at a time, and as many channels of values. */

typedef float F __attribute__((vector_size(4 * LANE)));
typedef int32_t I __attribute__((vector_size(4 * LANE)));
typedef uint32_t U __attribute__((vector_size(4 * LANE)));
typedef F AnyF __attribute__((aligned(4), may_alias));
typedef I AnyI __attribute__((aligned(1), may_alias)); /* words lie in memory of bytes, also of a caller */

INLINE F load(const float *p) { return *(const AnyF *)p; }
INLINE void store(float *p, F v) { *(AnyF *)p = v; }
INLINE I load_int(const void *p) { return *(const AnyI *)p; }
INLINE void store_int(void *p, I v) { *(AnyI *)p = v; }
INLINE F floats(I v) { return __builtin_convertvector(v, F); }

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
INLINE F all(float v) { return (F)_mm512_set1_ps(v); }
INLINE I all_int(int32_t v) { return (I)_mm512_set1_epi32(v); }
INLINE F fused(F a, F b, F c) { return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
/* 1 / x, with one step of Newton's method: the processor's division takes as long as ten other instructions. */
INLINE F inverted(F x) {
    F y = (F)_mm512_rcp14_ps((__m512)x);
    return fused(y, fused(-x, y, all(1.0f)), y);
}
INLINE F larger(F a, F b) { return (F)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE F smaller(F a, F b) { return (F)_mm512_min_ps((__m512)a, (__m512)b); }
#elif defined(__AVX2__)
INLINE F all(float v) { return (F)_mm256_set1_ps(v); }
INLINE I all_int(int32_t v) { return (I)_mm256_set1_epi32(v); }
INLINE F fused(F a, F b, F c) { return (F)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
INLINE F inverted(F x) { return 1.0f / x; }
INLINE F larger(F a, F b) { return (F)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE F smaller(F a, F b) { return (F)_mm256_min_ps((__m256)a, (__m256)b); }
#else
INLINE F all(float v) { return (F){v, v, v, v}; }
INLINE I all_int(int32_t v) { return (I){v, v, v, v}; }
INLINE F fused(F a, F b, F c) { return a * b + c; }
INLINE F inverted(F x) { return 1.0f / x; }
INLINE F chosen(I mask, F a, F b) { return (F)((mask & (I)a) | (~mask & (I)b)); }
INLINE F larger(F a, F b) { return chosen(a > b, a, b); } /* b where a is not a number, as the instructions above */
INLINE F smaller(F a, F b) { return chosen(a < b, a, b); }
#endif

/* Add to each lane the products of four uint8 of x and four int8 of w. */
#if defined(__AVX512VNNI__)
INLINE I dot(I sum, I x, I w) { return (I)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)w); }
#elif defined(__AVXVNNI__)
INLINE I dot(I sum, I x, I w) { return (I)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)x, (__m256i)w); }
#elif defined(__AVX2__)
/* The instruction for products of bytes adds pairs of them in 16 bits, which saturate. Weights are `narrow` where no pair can
 * reach that; else bytes are widened, which takes three times as many instructions. */
#define HAS_NARROW
INLINE I dot_narrow(I sum, I x, I w) {
    __m256i pairs = _mm256_maddubs_epi16((__m256i)x, (__m256i)w);
    return (I)_mm256_add_epi32((__m256i)sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
INLINE I dot(I sum, I x, I w) {
    const __m256i low = _mm256_set1_epi16(0xff);
    __m256i even = _mm256_madd_epi16(_mm256_and_si256((__m256i)x, low), _mm256_srai_epi16(_mm256_slli_epi16((__m256i)w, 8), 8));
    __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16((__m256i)x, 8), _mm256_srai_epi16((__m256i)w, 8));
    return (I)_mm256_add_epi32((__m256i)sum, _mm256_add_epi32(even, odd));
}
#else
INLINE I dot(I sum, I x, I w) {
    U bytes = (U)x;
    for (int i = 0; i < 4; i++) sum += (I)(bytes >> 8 * i & 255) * (w << (24 - 8 * i) >> 24);
    return sum;
}
#endif

/* One block of a chunk's outputs, for `registers` of tokens. An instruction's result is ready some cycles later, so there are
 * at least eight sums in flight: few registers of tokens take several sets of sums. */
INLINE void multiply_rows(I (*const dot)(I, I, I), const int registers, const Sparse *s, size_t block, size_t chunk, const char *x, size_t width,
                          int32_t *acc) {
    enum { MOST = 8, AHEAD = 512 }; /* words: they are read once a call, from memory that is far away */
    const int sets = registers > 4 ? 1 : registers > 2 ? 2 : 4;
    size_t begin = chunk * CHUNK, end = begin + CHUNK < s->outputs ? begin + CHUNK : s->outputs;
    const int32_t *w = s->words + s->starts[block * s->chunks + chunk];
    const uint8_t *g = s->index + s->starts[block * s->chunks + chunk];
    for (size_t i = block * s->outputs + begin; i < block * s->outputs + end; i++) {
        int32_t *row = acc + (s->rows[i] - begin) * width;
        I sum[4][MOST];
        UNROLL for (int r = 0; r < registers; r++) {
            sum[0][r] = block ? load_int(row + r * LANE) : (I){0};
            UNROLL for (int t = 1; t < sets; t++) sum[t][r] = (I){0};
        }
        const uint8_t *last = g + s->counts[i];
        for (int ahead = 0; ahead < s->counts[i]; ahead += 16) __builtin_prefetch(w + AHEAD + ahead);
        __builtin_prefetch(g + AHEAD);
        for (; g + sets <= last; g += sets, w += sets)
            UNROLL for (int t = 0; t < sets; t++) {
                const char *from = x + g[t] * (4 * width);
                UNROLL for (int r = 0; r < registers; r++)
                    sum[t][r] = dot(sum[t][r], load_int(from + r * sizeof(I)), all_int(w[t]));
            }
        if (sets > 1)
            for (; g < last; g++, w++) {
                const char *from = x + *g * (4 * width);
                UNROLL for (int r = 0; r < registers; r++) sum[0][r] = dot(sum[0][r], load_int(from + r * sizeof(I)), all_int(*w));
            }
        UNROLL for (int r = 0; r < registers; r++) {
            UNROLL for (int t = 1; t < sets; t++) sum[0][r] += sum[t][r];
            store_int(row + r * LANE, sum[0][r]);
        }
    }
}

INLINE void multiply_by(I (*const dot)(I, I, I), const Sparse *s, size_t block, size_t chunk, const uint32_t *x, size_t width,
                        int32_t *acc) {
    for (size_t first = 0; first < width; first += PASS * LANE) {
        size_t registers = (width - first) / LANE;
        const char *from = (const char *)(x + block * BLOCK * width + first);
        switch (registers < PASS ? registers : PASS) {
#define CASE(n) case n: if (n <= PASS && n % (LANES / LANE) == 0) multiply_rows(dot, n, s, block, chunk, from, width, acc + first); break;
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
#undef CASE
        }
    }
}

static void multiply(const Sparse *s, size_t block, size_t chunk, const uint32_t *x, size_t width, int32_t *acc) {
#ifdef HAS_NARROW
    if (s->narrow) {
        multiply_by(dot_narrow, s, block, chunk, x, width, acc);
        return;
    }
#endif
    multiply_by(dot, s, block, chunk, x, width, acc);
}

/* round(clamp(x / scale)) + zero_point, as integers. Adding 1.5 * 2^23 rounds to an integer, halves to even. */
INLINE I on_grid(F x, F inverse, I zero_point) {
    const F magic = all(12582912.0f);
    F low = floats(-zero_point), high = floats(255 - zero_point);
    return (I)(smaller(larger(x * inverse, low), high) + magic) - (I)magic + zero_point;
}

static void quantize(const float *x, size_t x_stride, size_t channels, size_t tokens, uint32_t *q, size_t q_stride, Grid grid) {
    F inverse = all(1 / grid.scale);
    I zero_point = all_int(grid.zero_point);
    for (size_t c = 0; c < channels; c += 4)
        for (size_t t = 0; t < tokens; t += LANE) {
            I word = {0};
            for (size_t i = 0; i < 4 && c + i < channels; i++)
                word |= on_grid(load(x + (c + i) * x_stride + t), inverse, zero_point) << 8 * (int)i;
            store_int(q + c / 4 * q_stride + t, word);
        }
}

/* e^x for x <= 0; 0 below -87. Largest relative error: see the tests. */
INLINE F exponential(F x) {
    const F magic = all(12582912.0f), least = all(-87.0f);
    I kept = x > least;
    x = larger(x, least);
    F shifted = fused(x, all(1.44269504f), magic), n = shifted - magic;
    F r = fused(n, all(-0.693359375f), x);
    r = fused(n, all(2.12194440e-4f), r);
    F p = all(1.9875691500e-4f);
    p = fused(p, r, all(1.3981999507e-3f));
    p = fused(p, r, all(8.3334519073e-3f));
    p = fused(p, r, all(4.1665795894e-2f));
    p = fused(p, r, all(1.6666665459e-1f));
    p = fused(p, r, all(5.0000001201e-1f));
    p = fused(p, r * r, r + 1.0f);
    I power = (I)p + (((I)shifted - (I)magic) << 23);
    return (F)(power & kept);
}

INLINE F absolute(F x) { return (F)((I)x & 0x7fffffff); }

/* x (1 + erf(x / sqrt 2)) / 2. erf is a ratio of polynomials, as in Eigen; its error is below 4e-7. */
INLINE F gelu(F x) {
    F z = smaller(larger(x * 0.70710678f, all(-4.0f)), all(4.0f)), s = z * z;
    F p = fused(s, all(-2.72614225801306e-10f), all(2.77068142495902e-08f));
    p = fused(s, p, all(-2.10102402082508e-06f));
    p = fused(s, p, all(-5.69250639462346e-05f));
    p = fused(s, p, all(-7.34990630326855e-04f));
    p = fused(s, p, all(-2.95459980854025e-03f));
    p = fused(s, p, all(-1.60960333262415e-02f));
    F q = fused(s, all(-1.45660718464996e-05f), all(-2.13374055278905e-04f));
    q = fused(s, q, all(-1.68282697438203e-03f));
    q = fused(s, q, all(-7.37332916720468e-03f));
    q = fused(s, q, all(-1.42647390514189e-02f));
    F half = 0.5f * x;
    return fused(half * z, p * inverted(q), half);
}

/* x / (1 + e^(-2u)), u = sqrt(2 / pi) (x + 0.044715 x^3); the exponential takes numbers up to 0. */
INLINE F gelu_tanh(F x) {
    F twice = 1.59576912f * fused(x * x * x, all(0.044715f), x);
    F e = exponential(-absolute(twice));
    I positive = twice > 0.0f;
    F numerator = (F)((positive & (I)all(1.0f)) | (~positive & (I)e));
    return x * numerator * inverted(1.0f + e);
}

INLINE F activated(F x, Activation activation) {
    switch (activation) {
        case RELU: return larger(x, (F){0});
        case GELU: return gelu(x);
        case GELU_TANH: return gelu_tanh(x);
        default: return x;
    }
}

/* `rows` outputs from n on. `outs`: 1 for floats, 2 for words, 3 for both. */
INLINE void finish_rows(const Activation activation, const int outs, const int rows, const Affine *a, const int32_t *acc, size_t n,
                        size_t width, float *y, uint32_t *q, Grid grid) {
    F scale[4], bias[4], inverse = all(1 / grid.scale);
    I shift[4], zero_point = all_int(grid.zero_point);
    UNROLL for (int i = 0; i < rows; i++) {
        scale[i] = all(a->scale[n + i]), bias[i] = all(a->bias[n + i]);
        shift[i] = all_int(a->zero_point * a->sums[n + i]);
    }
    for (size_t t = 0; t < width; t += LANE) {
        I word = {0};
        UNROLL for (int i = 0; i < rows; i++) {
            F v = activated(floats(load_int(acc + i * width + t) - shift[i]) * scale[i] + bias[i], activation);
            if (outs & 1) store(y + (n + i) * width + t, v);
            if (outs & 2) word |= on_grid(v, inverse, zero_point) << 8 * i;
        }
        if (outs & 2) store_int(q + n / 4 * width + t, word);
    }
}

INLINE void finish_as(const Activation activation, const int outs, const Affine *a, const int32_t *acc, size_t begin, size_t end,
                      size_t width, float *y, uint32_t *q, Grid grid) {
    size_t n = begin;
    for (; n + 4 <= end; n += 4) finish_rows(activation, outs, 4, a, acc + (n - begin) * width, n, width, y, q, grid);
    if (n < end) finish_rows(activation, outs, (int)(end - n), a, acc + (n - begin) * width, n, width, y, q, grid);
}

static void finish(const Affine *a, const int32_t *acc, size_t begin, size_t end, size_t width, float *y, uint32_t *q, Grid grid) {
    switch (4 * a->activation + !!y + 2 * !!q) { /* compiled for each activation and each set of outputs */
#define CASE(activation, outs) \
    case 4 * activation + outs: finish_as(activation, outs, a, acc, begin, end, width, y, q, grid); break;
#define CASES(activation) CASE(activation, 1) CASE(activation, 2) CASE(activation, 3)
        CASES(NO_ACTIVATION) CASES(RELU) CASES(GELU) CASES(GELU_TANH)
#undef CASES
#undef CASE
    }
}

INLINE F square_root(F x) {
    for (int i = 0; i < LANE; i++) x[i] = __builtin_sqrtf(x[i]);
    return x;
}

/* As `normalize`, for `registers` of tokens. */
INLINE void normalize_as(const int registers, const float *a, const float *b, const float *gain, const float *bias, float epsilon,
                         size_t channels, size_t width, float *y, uint32_t *q, Grid grid) {
    F sum[8], squares[8];
    UNROLL for (int r = 0; r < registers; r++) sum[r] = squares[r] = (F){0};
    for (size_t c = 0; c < channels; c++)
        UNROLL for (int r = 0; r < registers; r++) {
            F v = load(a + c * width + r * LANE);
            if (b) v += load(b + c * width + r * LANE);
            store(y + c * width + r * LANE, v);
            sum[r] += v;
        }
    UNROLL for (int r = 0; r < registers; r++) sum[r] /= (float)channels;
    for (size_t c = 0; c < channels; c++)
        UNROLL for (int r = 0; r < registers; r++) {
            F v = load(y + c * width + r * LANE) - sum[r];
            squares[r] += v * v;
        }
    UNROLL for (int r = 0; r < registers; r++) squares[r] = 1.0f / square_root(squares[r] / (float)channels + epsilon);
    F inverse = all(1 / grid.scale);
    I zero_point = all_int(grid.zero_point);
    for (size_t c = 0; c < channels; c += 4) {
        I word[8];
        UNROLL for (int r = 0; r < registers; r++) word[r] = (I){0};
        for (size_t i = 0; i < 4 && c + i < channels; i++)
            UNROLL for (int r = 0; r < registers; r++) {
                F v = (load(y + (c + i) * width + r * LANE) - sum[r]) * squares[r] * gain[c + i] + bias[c + i];
                store(y + (c + i) * width + r * LANE, v);
                word[r] |= on_grid(v, inverse, zero_point) << 8 * (int)i;
            }
        UNROLL for (int r = 0; r < registers; r++)
            if (q) store_int(q + c / 4 * width + r * LANE, word[r]);
    }
}

static void normalize(const float *a, const float *b, const float *gain, const float *bias, float epsilon, size_t channels,
                      size_t tokens, size_t width, float *y, uint32_t *q, Grid grid) {
    if (tokens == NORMALIZED) normalize_as(NORMALIZED / LANE, a, b, gain, bias, epsilon, channels, width, y, q, grid);
    else normalize_as(LANES / LANE, a, b, gain, bias, epsilon, channels, width, y, q, grid);
}

/* Scores of keys k to k + count: to scratch, with the largest score of each query so far. */
INLINE void score(const int queries, const int count, const Head *h, size_t k, const float *q, size_t tokens, float *scratch,
                  F *largest) {
    F sum[6][4];
    UNROLL for (int i = 0; i < count; i++) UNROLL for (int j = 0; j < queries; j++) sum[i][j] = (F){0};
    for (size_t c = 0; c < h->size; c++) {
        const float *key = h->k + c * h->kv_stride + k;
        F query[4];
        UNROLL for (int j = 0; j < queries; j++) query[j] = load(q + c * h->q_stride + j * LANE);
        UNROLL for (int i = 0; i < count; i++) {
            F one = all(key[i]);
            UNROLL for (int j = 0; j < queries; j++) sum[i][j] = fused(one, query[j], sum[i][j]);
        }
    }
    UNROLL for (int i = 0; i < count; i++) {
        F mask = all(h->mask ? h->mask[k + i] : 0.0f);
        UNROLL for (int j = 0; j < queries; j++) {
            F v = sum[i][j] * h->scale + mask;
            store(scratch + (k + i) * tokens + j * LANE, v);
            largest[j] = larger(largest[j], v);
        }
    }
}

/* Channels c to c + count of the mean of the values, weighted with scratch. */
INLINE void mix(const int queries, const int count, const Head *h, size_t c, const float *scratch, size_t tokens,
                const F *inverse, float *out) {
    F sum[6][4];
    UNROLL for (int i = 0; i < count; i++) UNROLL for (int j = 0; j < queries; j++) sum[i][j] = (F){0};
    for (size_t k = 0; k < h->keys; k++) {
        const float *value = h->v + c * h->kv_stride + k;
        F weight[4];
        UNROLL for (int j = 0; j < queries; j++) weight[j] = load(scratch + k * tokens + j * LANE);
        UNROLL for (int i = 0; i < count; i++) {
            F one = all(value[i * h->kv_stride]);
            UNROLL for (int j = 0; j < queries; j++) sum[i][j] = fused(one, weight[j], sum[i][j]);
        }
    }
    UNROLL for (int i = 0; i < count; i++)
        UNROLL for (int j = 0; j < queries; j++) store(out + (c + i) * tokens + j * LANE, sum[i][j] * inverse[j]);
}

INLINE void attend_to(const int queries, const Head *h, size_t first, size_t tokens, float *out, float *scratch) {
    F largest[4], sum[4], inverse[4];
    UNROLL for (int j = 0; j < queries; j++) largest[j] = all(-FLT_MAX), sum[j] = (F){0};
    size_t k = 0, c = 0;
    for (; k + KEYS <= h->keys; k += KEYS) score(queries, KEYS, h, k, h->q + first, tokens, scratch + first, largest);
    for (; k + 2 <= h->keys; k += 2) score(queries, 2, h, k, h->q + first, tokens, scratch + first, largest);
    for (; k < h->keys; k++) score(queries, 1, h, k, h->q + first, tokens, scratch + first, largest);
    for (k = 0; k < h->keys; k++)
        UNROLL for (int j = 0; j < queries; j++) {
            float *at = scratch + first + k * tokens + j * LANE;
            F e = exponential(load(at) - largest[j]);
            store(at, e);
            sum[j] += e;
        }
    UNROLL for (int j = 0; j < queries; j++) inverse[j] = 1.0f / sum[j];
    for (; c + KEYS <= h->size; c += KEYS) mix(queries, KEYS, h, c, scratch + first, tokens, inverse, out + first);
    for (; c + 2 <= h->size; c += 2) mix(queries, 2, h, c, scratch + first, tokens, inverse, out + first);
}

static void attend(const Head *h, size_t tokens, float *out, float *scratch) {
    size_t first = 0, step = QUERIES * LANE;
    for (; first + step <= tokens; first += step) attend_to(QUERIES, h, first, tokens, out, scratch);
    for (; first < tokens; first += LANE) attend_to(1, h, first, tokens, out, scratch);
}

const Path JOINED(path_, PATH) = {TEXT(PATH), multiply, finish, normalize, quantize, attend};
