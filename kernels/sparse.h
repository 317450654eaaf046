/* Products of uint8 activations and sparse int8 weights: acc[n][t] = sum_k x[t][k] w[n][k], exact in int32.
 *
 * Tokens are innermost. Activations are packed to words of four consecutive inputs, [tile][group][TOKENS]. A group of four
 * weights of one output is one word; groups of zeros are not stored. One stored word meets TOKENS tokens.
 * Inputs are cut into blocks of BLOCK groups, so that a block of packed activations stays in the first-level cache.
 */
#ifndef PRUNEONCE_SPARSE_H
#define PRUNEONCE_SPARSE_H

#include <stddef.h>
#include <stdint.h>

enum { TOKENS = 64, BLOCK = 96 };

typedef struct {
    size_t outputs, inputs; /* N, K */
    size_t groups, blocks;  /* of inputs: ceil(K / 4), ceil(groups / BLOCK) */
    size_t count;           /* stored words */
    uint32_t *first;        /* [blocks * N + 1]: the words of output n in block b are first[b * N + n] up to the next */
    uint16_t *offsets;      /* [count]: group in its block, times TOKENS */
    int32_t *words;         /* [count]: four weights, the first input in the lowest byte */
    int32_t *sums;          /* [N]: sum of the weights of an output, for the zero point */
} Sparse;

/* The stored form of w, int8[outputs, inputs]. Returns 0, or -1 if there is no memory. */
int sparse_make(Sparse *sparse, const int8_t *w, size_t outputs, size_t inputs);
void sparse_free(Sparse *sparse);

/* Pack tokens t0 up to t0 + TOKENS of x, uint8[tokens, inputs], to [groups][TOKENS]. Missing tokens and inputs are 0. */
void sparse_pack(uint32_t *packed, const uint8_t *x, size_t tokens, size_t inputs, size_t t0);

/* acc: int32[outputs][TOKENS]. All paths give the same integers. */
typedef void SparseMultiply(const Sparse *sparse, const uint32_t *packed, int32_t *acc, size_t begin, size_t end);
SparseMultiply sparse_multiply_portable, sparse_multiply_avx2, sparse_multiply_avxvnni, sparse_multiply_avx512;
SparseMultiply *sparse_best(void);

#endif
