#include "sparse.h"

#include <stdlib.h>
#include <string.h>

int sparse_make(Sparse *s, const int8_t *w, size_t outputs, size_t inputs) {
    size_t groups = (inputs + 3) / 4, blocks = (groups + BLOCK - 1) / BLOCK;
    *s = (Sparse){.outputs = outputs, .inputs = inputs, .groups = groups, .blocks = blocks};
    s->first = malloc((blocks * outputs + 1) * sizeof *s->first);
    s->sums = calloc(outputs ? outputs : 1, sizeof *s->sums);
    if (!s->first || !s->sums) return sparse_free(s), -1;
    for (int write = 0; write < 2; write++) { /* count, then write */
        size_t at = 0;
        for (size_t b = 0; b < blocks; b++)
            for (size_t n = 0; n < outputs; n++) {
                s->first[b * outputs + n] = (uint32_t)at;
                for (size_t g = b * BLOCK; g < groups && g < (b + 1) * BLOCK; g++) {
                    int8_t four[4] = {0};
                    memcpy(four, w + n * inputs + 4 * g, inputs - 4 * g < 4 ? inputs - 4 * g : 4);
                    int32_t word;
                    memcpy(&word, four, 4);
                    if (!word) continue;
                    if (write) {
                        s->offsets[at] = (uint16_t)((g - b * BLOCK) * TOKENS);
                        s->words[at] = word;
                        s->sums[n] += four[0] + four[1] + four[2] + four[3];
                    }
                    at++;
                }
            }
        s->first[blocks * outputs] = (uint32_t)at;
        if (write) break;
        s->count = at;
        s->offsets = malloc((at + 1) * sizeof *s->offsets);
        s->words = malloc((at + 1) * sizeof *s->words);
        if (!s->offsets || !s->words) return sparse_free(s), -1;
    }
    return 0;
}

void sparse_free(Sparse *s) {
    free(s->first), free(s->offsets), free(s->words), free(s->sums);
    *s = (Sparse){0};
}

void sparse_pack(uint32_t *packed, const uint8_t *x, size_t tokens, size_t inputs, size_t t0) {
    size_t groups = (inputs + 3) / 4;
    memset(packed, 0, groups * TOKENS * sizeof *packed);
    for (size_t t = 0; t < TOKENS && t0 + t < tokens; t++)
        for (size_t g = 0; g < groups; g++)
            memcpy(packed + g * TOKENS + t, x + (t0 + t) * inputs + 4 * g, inputs - 4 * g < 4 ? inputs - 4 * g : 4);
}

void sparse_multiply_portable(const Sparse *s, const uint32_t *packed, int32_t *acc, size_t begin, size_t end) {
    for (size_t n = begin; n < end; n++) {
        int32_t *row = acc + n * TOKENS;
        memset(row, 0, TOKENS * sizeof *row);
        for (size_t b = 0; b < s->blocks; b++)
            for (uint32_t i = s->first[b * s->outputs + n]; i < s->first[b * s->outputs + n + 1]; i++) {
                const uint8_t *x = (const uint8_t *)(packed + b * BLOCK * TOKENS + s->offsets[i]);
                int8_t w[4];
                memcpy(w, &s->words[i], 4);
                for (size_t t = 0; t < TOKENS; t++)
                    row[t] += x[4 * t] * w[0] + x[4 * t + 1] * w[1] + x[4 * t + 2] * w[2] + x[4 * t + 3] * w[3];
            }
    }
}

#ifdef __x86_64__
#include <immintrin.h>

__attribute__((target("avx512f,avx512vnni"))) void sparse_multiply_avx512(const Sparse *s, const uint32_t *packed, int32_t *acc,
                                                                          size_t begin, size_t end) {
    for (size_t b = 0; b < s->blocks; b++) {
        const uint32_t *block = packed + b * BLOCK * TOKENS;
        const uint32_t *first = s->first + b * s->outputs;
        for (size_t n = begin; n < end; n++) {
            __m512i *row = (__m512i *)(acc + n * TOKENS), a0, a1, a2, a3;
            if (b) a0 = row[0], a1 = row[1], a2 = row[2], a3 = row[3];
            else a0 = a1 = a2 = a3 = _mm512_setzero_si512();
            for (uint32_t i = first[n], stop = first[n + 1]; i < stop; i++) {
                const __m512i *x = (const __m512i *)(block + s->offsets[i]), w = _mm512_set1_epi32(s->words[i]);
                a0 = _mm512_dpbusd_epi32(a0, x[0], w);
                a1 = _mm512_dpbusd_epi32(a1, x[1], w);
                a2 = _mm512_dpbusd_epi32(a2, x[2], w);
                a3 = _mm512_dpbusd_epi32(a3, x[3], w);
            }
            row[0] = a0, row[1] = a1, row[2] = a2, row[3] = a3;
        }
    }
}

/* Eight registers of eight tokens. `ADD` adds the products of one word of x and one of w to an accumulator. */
#define AVX2_PATH(name, isa, ADD)                                                                                               \
    __attribute__((target(isa))) void name(const Sparse *s, const uint32_t *packed, int32_t *acc, size_t begin, size_t end) {   \
        for (size_t b = 0; b < s->blocks; b++) {                                                                                \
            const uint32_t *block = packed + b * BLOCK * TOKENS, *first = s->first + b * s->outputs;                            \
            for (size_t n = begin; n < end; n++) {                                                                              \
                __m256i *row = (__m256i *)(acc + n * TOKENS), a[8];                                                             \
                for (int r = 0; r < 8; r++) a[r] = b ? row[r] : _mm256_setzero_si256();                                         \
                for (uint32_t i = first[n], stop = first[n + 1]; i < stop; i++) {                                               \
                    const __m256i *x = (const __m256i *)(block + s->offsets[i]), w = _mm256_set1_epi32(s->words[i]);            \
                    for (int r = 0; r < 8; r++) a[r] = ADD(a[r], x[r], w);                                                      \
                }                                                                                                               \
                for (int r = 0; r < 8; r++) row[r] = a[r];                                                                      \
            }                                                                                                                   \
        }                                                                                                                       \
    }

/* Exact without VNNI: products of bytes are summed in pairs of 16 bits, which saturate; so even and odd bytes are 16 bits here. */
__attribute__((target("avx2"), always_inline)) static inline __m256i add_avx2(__m256i a, __m256i x, __m256i w) {
    const __m256i low = _mm256_set1_epi16(0xff);
    __m256i even = _mm256_madd_epi16(_mm256_and_si256(x, low), _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8));
    __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(x, 8), _mm256_srai_epi16(w, 8));
    return _mm256_add_epi32(a, _mm256_add_epi32(even, odd));
}

AVX2_PATH(sparse_multiply_avxvnni, "avx2,avxvnni", _mm256_dpbusd_avx_epi32)
AVX2_PATH(sparse_multiply_avx2, "avx2", add_avx2)

/* Placeholder: to be replaced by what the processor says, cpuid and xgetbv. */
SparseMultiply *sparse_best(void) { return sparse_multiply_avx512; }
#else
SparseMultiply *sparse_best(void) { return sparse_multiply_portable; }
#endif
