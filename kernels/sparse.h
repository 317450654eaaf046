/* The sparse form of a weight, int8[outputs, inputs], and its products with uint8 activations.
 *
 * Four consecutive inputs of one output are a group; a group is one 32-bit word, and a word of four zeros is not stored. One
 * stored word meets all tokens of a tile. A word may also be stored in parts, as two words of the same group.
 *
 * Inputs are cut into blocks of BLOCK groups, so that the activations of a block stay in the first-level cache. Outputs are cut
 * into chunks of CHUNK. In a chunk, outputs with more words come first: a processor foresees the end of a loop that is as long as
 * the one before.
 */
#ifndef PRUNEONCE_SPARSE_H
#define PRUNEONCE_SPARSE_H

#include <stddef.h>
#include <stdint.h>

enum { BLOCK = 96, CHUNK = 32 };
/* Inputs of an output, at most. Then any sum of products fits in int32, also of words that a damaged file has many times. */
enum { WIDEST_WEIGHT = 1 << 14 };

typedef struct {
    size_t outputs, groups, blocks, chunks;
    const int32_t *words;   /* [stored]: by block, by output in the order of `rows`, by input */
    const uint8_t *index;   /* [stored]: the group of a word, counted from the first one of its block */
    const uint8_t *counts;  /* [blocks, outputs]: words of each output, in the order of `rows` */
    const uint16_t *rows;   /* [blocks, outputs]: an order of the outputs; a chunk of it has the outputs of that chunk */
    size_t *starts;         /* [blocks, chunks]: the first word of a chunk */
    int narrow;             /* in each word |w0| + |w1| and |w2| + |w3| are at most 128: 255 times that fits in 16 bits */
    int32_t *sums;          /* [outputs]: sum of the weights of an output; it meets the zero point of the activations */
} Sparse;

typedef enum { SPARSE_GOOD, SPARSE_DAMAGED, SPARSE_NO_MEMORY } SparseStatus;

/* Check the five arrays and their sizes, which come from a file, and add what follows them. `stored`: the words. */
SparseStatus sparse_complete(Sparse *sparse, size_t outputs, size_t inputs, size_t stored);
void sparse_release(Sparse *sparse);

#endif
