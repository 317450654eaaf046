/* The loops over activations, compiled once for each kind of processor: a `Path` holds one compilation's functions. */
#ifndef PRUNEONCE_PATH_H
#define PRUNEONCE_PATH_H

#include "sparse.h"
#include "tiles.h"

/* How floats become uint8: q = clamp(round(x / scale) + zero_point, 0, 255), halves to even. */
typedef struct {
    float scale;
    int32_t zero_point;
} Grid;

typedef enum { NO_ACTIVATION, RELU, GELU, GELU_TANH } Activation;

/* y = activation(scale * (acc - zero_point * sum) + bias); scale, bias and sums: one for each output. */
typedef struct {
    const float *scale, *bias;
    const int32_t *sums;
    int32_t zero_point; /* of the activations that were multiplied */
    Activation activation;
} Affine;

/* One head of one text. Rows are channels, tokens are innermost. */
typedef struct {
    size_t size, keys;           /* channels of a head; tokens of the text, without masked ones at its end */
    const float *q, *k, *v;      /* rows of `q_stride` and `kv_stride` floats */
    size_t q_stride, kv_stride;
    float scale;                 /* of the scores */
    const float *mask;           /* [keys], added to the scores; NULL for none */
} Head;

enum { NORMALIZED = 32 };
enum { ATTENDED = 64 }; /* tokens of a call of `attend`, at most; its scratch is float[keys][tokens] */

typedef struct {
    const char *name;
    /* Add a block of a chunk's products to acc[outputs of the chunk][width]; block 0 sets them. x: a tile's words. Exact in
     * int32 where the exact sum fits. */
    void (*multiply)(const Sparse *sparse, size_t block, size_t chunk, const uint32_t *x, size_t width, int32_t *acc);
    /* Outputs begin to end of a tile from their products, acc[end - begin][width]: floats to y, or words to q, or both. */
    void (*finish)(const Affine *affine, const int32_t *acc, size_t begin, size_t end, size_t width, float *y, uint32_t *q,
                   Grid grid);
    /* 16 or NORMALIZED tokens of a tile: y = layer normalization of a + b over the channels; also its words. b, q: may be NULL. */
    void (*normalize)(const float *a, const float *b, const float *gain, const float *bias, float epsilon, size_t channels,
                      size_t tokens, size_t width, float *y, uint32_t *q, Grid grid);
    /* Words of `tokens` tokens, a multiple of 16: x[channels][tokens] and q[channels / 4][tokens], in rows of such strides. */
    void (*quantize)(const float *x, size_t x_stride, size_t channels, size_t tokens, uint32_t *q, size_t q_stride, Grid grid);
    /* out[size][tokens] = softmax(scale * q k + mask) v, for the first `tokens` of q, a multiple of 16 up to ATTENDED. */
    void (*attend)(const Head *head, size_t tokens, float *out, float *scratch);
} Path;

extern const Path path_portable, path_avx2, path_avxvnni, path_avx512vnni;

#endif
