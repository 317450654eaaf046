/* The operators for ONNX Runtime, in the domain "pruneonce", version 1.
 *
 * Between them activations lie in tiles (tiles.h): P is the number of tokens, padded; a channel count is written C, K or N, and
 * C4 is C rounded up to a multiple of four. Each output y is float, each q is y on a grid of uint8, by the attributes
 * output_scale and output_zero_point; an output that the model does not name is not written.
 *
 *   Tile          x float[..., C]                                           -> y float[P, C]
 *   Untile        x float[P, C], like float[..., any]                       -> y float[..., C], with the axes of `like`
 *   Quantize      x float[P, C]                                             -> q uint8[P, C4]
 *   SparseLinear  x uint8[P, K4], words, index, counts, rows (sparse.h), scale float[N], bias float[N]
 *                 y = activation(scale (x - zero_point) w^T + bias)         -> y float[P, N], q uint8[P, N4]
 *                 attributes: inputs (K), zero_point, activation (path.h)
 *   AddNormalize  a float[P, C], b float[P, C] or none, gain float[C], bias float[C]
 *                 y = layer normalization of a + b                          -> y float[P, C], q uint8[P, C4]
 *                 attribute: epsilon
 *   Attention     x float[P, 3 C]: queries, keys, values; like float[texts, length, any]; mask float[texts, 1, 1, length] or none
 *                 y = softmax(scale q k^T + mask) v, for each head          -> y float[P, C], q uint8[P, C]
 *                 attributes: heads, scale; C / heads is a multiple of four
 */
#include "operators.h"

#include <float.h>
#include <stdlib.h>
#include <string.h>

static size_t least(size_t a, size_t b) { return a < b ? a : b; }
static size_t fours(size_t channels) { return (channels + 3) / 4 * 4; }

/* ---- Memory that a thread uses for a moment ----
 *
 * A large block that is freed goes back to the operating system, and the next one costs a page fault for each 4 KiB. So a few
 * blocks are kept for the process. */

typedef struct {
    size_t bytes;
    char padding[56]; /* what follows begins at a cache line */
} Block;

enum { KEPT_BLOCKS = 64, KEPT_BYTES = 1 << 22 };
static Block *kept[KEPT_BLOCKS];

static void give_back(void *memory) {
    Block *block = (Block *)memory - 1;
    for (size_t i = 0; i < KEPT_BLOCKS && block->bytes <= KEPT_BYTES; i++) {
        Block *none = NULL;
        if (__atomic_compare_exchange_n(&kept[i], &none, block, 0, __ATOMIC_RELEASE, __ATOMIC_RELAXED)) return;
    }
    free(block);
}

/* `bytes` of memory at a cache line, to be given back; NULL if there is none. */
static void *scratch(size_t bytes) {
    for (size_t i = 0; i < KEPT_BLOCKS; i++) {
        Block *block = __atomic_load_n(&kept[i], __ATOMIC_RELAXED) ? __atomic_exchange_n(&kept[i], NULL, __ATOMIC_ACQUIRE) : NULL;
        if (block && block->bytes >= bytes) return block + 1;
        free(block); /* too small: a larger one takes its place */
    }
    size_t rounded = (bytes + 4095) / 4096 * 4096;
    Block *block = aligned_alloc(64, sizeof *block + rounded);
    if (block) block->bytes = rounded;
    return block ? block + 1 : NULL;
}

/* ---- Tile and Untile ---- */

typedef struct {
    float *tiles, *rows; /* [channels][width] of each tile; [tokens][channels] */
    size_t tokens, channels;
} Turn;

/* Sixteen tokens by sixteen channels at a time, so that the lines of both sides stay in the first-level cache. */
static void tile_one(void *work, size_t index) {
    const Turn *turn = work;
    Tile tile = tile_at(padded(turn->tokens), index);
    for (size_t first = 0; first < tile.width; first += LANES) {
        size_t there = turn->tokens - tile.start - first < LANES ? turn->tokens - tile.start - first : LANES;
        const float *from = turn->rows + (tile.start + first) * turn->channels;
        for (size_t c = 0; c < turn->channels; c++) {
            float *to = turn->tiles + tile.start * turn->channels + c * tile.width + first;
            for (size_t t = 0; t < there; t++) to[t] = from[t * turn->channels + c];
            for (size_t t = there; t < LANES; t++) to[t] = 0;
        }
    }
}

static void untile_one(void *work, size_t index) {
    const Turn *turn = work;
    Tile tile = tile_at(padded(turn->tokens), index);
    const float *from = turn->tiles + tile.start * turn->channels;
    for (size_t first = 0; first < turn->channels; first += LANES)
        for (size_t t = 0; t < tile.width && tile.start + t < turn->tokens; t++) {
            float *to = turn->rows + (tile.start + t) * turn->channels;
            for (size_t c = first; c < least(first + LANES, turn->channels); c++) to[c] = from[c * tile.width + t];
        }
}

static OrtStatus *tile(const void *kernel, const Call *call) {
    (void)kernel;
    Tensor x, y;
    TRY(input(call, 0, &x));
    if (!x.rank || !x.dims[x.rank - 1])
        return wrong(call->api, call->name, "x as float[..., channels], found %s", axes(&x).text);
    size_t channels = (size_t)x.dims[x.rank - 1];
    Turn turn = {.rows = x.data, .tokens = x.count / channels, .channels = channels};
    TRY(output(call, 0, (int64_t[]){(int64_t)padded(turn.tokens), (int64_t)channels}, 2, &y));
    turn.tiles = y.data;
    return parallel(call, tile_one, tile_count(padded(turn.tokens)), &turn);
}

static OrtStatus *untile(const void *kernel, const Call *call) {
    (void)kernel;
    Tensor x, like, y;
    TRY(input(call, 1, &like));
    if (!like.rank || !like.dims[like.rank - 1])
        return wrong(call->api, call->name, "like as float[..., channels], found %s", axes(&like).text);
    TRY(tiled_input(call, 0, 0, &x));
    Turn turn = {.tiles = x.data, .tokens = like.count / (size_t)like.dims[like.rank - 1], .channels = (size_t)x.dims[1]};
    if ((size_t)x.dims[0] != padded(turn.tokens))
        return wrong(call->api, call->name, "as many tokens in x as in like, in sixteens, found %s and %s", axes(&x).text, axes(&like).text);
    like.dims[like.rank - 1] = x.dims[1];
    TRY(output(call, 0, like.dims, like.rank, &y));
    turn.rows = y.data;
    return parallel(call, untile_one, tile_count(padded(turn.tokens)), &turn);
}

/* ---- Quantize ---- */

typedef struct {
    Kernel base;
    Grid grid;
} Quantize;

typedef struct {
    const float *x;
    uint8_t *q;
    size_t padded, channels;
    Grid grid;
} QuantizeWork;

static OrtStatus *quantize_create(void *kernel, const OrtKernelInfo *info) {
    Quantize *quantize = kernel;
    return grid(&quantize->base, info, &quantize->grid);
}

static void quantize_one(void *work, size_t index) {
    const QuantizeWork *w = work;
    Tile tile = tile_at(w->padded, index);
    path->quantize(w->x + tile.start * w->channels, tile.width, w->channels, tile.width,
                   (uint32_t *)(w->q + tile.start * fours(w->channels)), tile.width, w->grid);
}

static OrtStatus *quantize_compute(const void *kernel, const Call *call) {
    const Quantize *quantize = kernel;
    Tensor x, q;
    TRY(tiled_input(call, 0, 0, &x));
    QuantizeWork work = {x.data, NULL, (size_t)x.dims[0], (size_t)x.dims[1], quantize->grid};
    TRY(output(call, 0, (int64_t[]){x.dims[0], (int64_t)fours(work.channels)}, 2, &q));
    work.q = q.data;
    return parallel(call, quantize_one, tile_count(work.padded), &work);
}

/* ---- SparseLinear ---- */

typedef struct {
    Kernel base;
    Sparse sparse;
    Affine affine;
    Grid grid;
} Linear;

static OrtStatus *linear_create(void *kernel, const OrtKernelInfo *info) {
    Linear *linear = kernel;
    const Kernel *k = &linear->base;
    Tensor words, index, counts, rows, scale, bias;
    int64_t inputs, zero_point, activation;
    TRY(constant(k, info, 1, 1, &words));
    TRY(constant(k, info, 2, 1, &index));
    TRY(constant(k, info, 3, 2, &counts));
    TRY(constant(k, info, 4, 2, &rows));
    TRY(constant(k, info, 5, 1, &scale));
    TRY(constant(k, info, 6, 1, &bias));
    TRY(integer(k, info, "inputs", 1, WIDEST_WEIGHT, &inputs));
    TRY(integer(k, info, "zero_point", 0, 255, &zero_point));
    TRY(integer(k, info, "activation", NO_ACTIVATION, GELU_TANH, &activation));
    TRY(grid(k, info, &linear->grid));
    size_t outputs = scale.count, blocks = ((size_t)inputs + 4 * BLOCK - 1) / (4 * BLOCK);
    int fits = index.count == words.count && bias.count == outputs && outputs && outputs <= UINT16_MAX;
    fits = fits && (size_t)counts.dims[0] == blocks && (size_t)counts.dims[1] == outputs;
    fits = fits && (size_t)rows.dims[0] == blocks && (size_t)rows.dims[1] == outputs;
    if (!fits) {
        return wrong(k->api, k->operator->name, "words, index, counts, rows, scale and bias of one weight of %lld inputs, "
                     "[words], [words], [%zu, N], [%zu, N], [N], [N], found %s, %s, %s, %s, %s, %s", (long long)inputs, blocks, blocks,
                     axes(&words).text, axes(&index).text, axes(&counts).text, axes(&rows).text, axes(&scale).text, axes(&bias).text);
    }
    linear->sparse = (Sparse){.words = words.data, .index = index.data, .counts = counts.data, .rows = rows.data};
    switch (sparse_complete(&linear->sparse, outputs, (size_t)inputs, words.count)) {
        case SPARSE_NO_MEMORY: return no_memory(k->api);
        case SPARSE_DAMAGED: return wrong(k->api, k->operator->name, "words, index, counts and rows that fit together, found others");
        default: break;
    }
    linear->affine = (Affine){scale.data, bias.data, linear->sparse.sums, (int32_t)zero_point, (Activation)activation};
    return NULL;
}

static void linear_release(void *kernel) { sparse_release(&((Linear *)kernel)->sparse); }

typedef struct {
    const Linear *linear;
    const uint8_t *x;
    float *y;
    uint8_t *q;
    size_t padded, parts, chunks; /* chunks of outputs in a part */
    int no_memory;
} LinearWork;

static void linear_one(void *work, size_t index) {
    LinearWork *w = work;
    const Sparse *s = &w->linear->sparse;
    Tile tile = tile_at(w->padded, index / w->parts);
    size_t first = index % w->parts * w->chunks, last = least(first + w->chunks, s->chunks);
    int32_t *acc = scratch((last - first) * CHUNK * tile.width * sizeof *acc);
    if (!acc) {
        __atomic_store_n(&w->no_memory, 1, __ATOMIC_RELAXED);
        return;
    }
    const uint32_t *x = (const uint32_t *)(w->x + tile.start * 4 * s->groups);
    float *y = w->y ? w->y + tile.start * s->outputs : NULL;
    uint32_t *q = w->q ? (uint32_t *)(w->q + tile.start * fours(s->outputs)) : NULL;
    for (size_t block = 0; block < s->blocks; block++)
        for (size_t chunk = first; chunk < last; chunk++) {
            size_t row = chunk * CHUNK;
            int32_t *sums = acc + (row - first * CHUNK) * tile.width;
            path->multiply(s, block, chunk, x, tile.width, sums);
            if (block + 1 == s->blocks) /* while the sums are in the first-level cache */
                path->finish(&w->linear->affine, sums, row, least(row + CHUNK, s->outputs), tile.width, y, q, w->linear->grid);
        }
    give_back(acc);
}

static OrtStatus *linear_compute(const void *kernel, const Call *call) {
    const Linear *linear = kernel;
    const Sparse *s = &linear->sparse;
    Tensor x, y, q;
    TRY(tiled_input(call, 0, 4 * s->groups, &x));
    TRY(output(call, 0, (int64_t[]){x.dims[0], (int64_t)s->outputs}, 2, &y));
    TRY(output(call, 1, (int64_t[]){x.dims[0], (int64_t)fours(s->outputs)}, 2, &q));
    /* At least four parts, for the session's threads, but each as large as pays for reading the activations again. */
    size_t chunks = least((s->chunks + 3) / 4, 8);
    if (chunks < 2) chunks = 2;
    LinearWork work = {linear, x.data, y.data, q.data, (size_t)x.dims[0], (s->chunks + chunks - 1) / chunks, chunks, 0};
    TRY(parallel(call, linear_one, tile_count(work.padded) * work.parts, &work));
    return work.no_memory ? no_memory(call->api) : NULL;
}

/* ---- AddNormalize ---- */

typedef struct {
    Kernel base;
    size_t channels;
    const float *gain, *bias;
    float epsilon;
    Grid grid;
} Normalize;

typedef struct {
    const Normalize *normalize;
    const float *a, *b;
    float *y;
    uint8_t *q;
    size_t padded;
} NormalizeWork;

static OrtStatus *normalize_create(void *kernel, const OrtKernelInfo *info) {
    Normalize *normalize = kernel;
    const Kernel *k = &normalize->base;
    Tensor gain, bias;
    TRY(constant(k, info, 2, 1, &gain));
    TRY(constant(k, info, 3, 1, &bias));
    if (!gain.count || gain.count != bias.count)
        return wrong(k->api, k->operator->name, "gain and bias of the same channels, found %zu and %zu", gain.count, bias.count);
    normalize->channels = gain.count, normalize->gain = gain.data, normalize->bias = bias.data;
    TRY(number(k, info, "epsilon", 0, &normalize->epsilon));
    return grid(k, info, &normalize->grid);
}

/* The tokens from `index` * NORMALIZED on; where a tile ends in between, in two steps. */
static void normalize_one(void *work, size_t index) {
    const NormalizeWork *w = work;
    const Normalize *n = w->normalize;
    size_t end = least((index + 1) * NORMALIZED, w->padded);
    for (size_t token = index * NORMALIZED; token < end;) {
        Tile tile = tile_at(w->padded, tile_of(w->padded, token));
        size_t inside = token - tile.start, tokens = least(end, tile.start + tile.width) - token;
        size_t at = tile.start * n->channels + inside;
        const float *b = w->b ? w->b + at : NULL;
        uint32_t *q = w->q ? (uint32_t *)(w->q + tile.start * fours(n->channels)) + inside : NULL;
        path->normalize(w->a + at, b, n->gain, n->bias, n->epsilon, n->channels, tokens, tile.width, w->y + at, q, n->grid);
        token += tokens;
    }
}

static OrtStatus *normalize_compute(const void *kernel, const Call *call) {
    const Normalize *normalize = kernel;
    Tensor a, b, y, q;
    TRY(tiled_input(call, 0, normalize->channels, &a));
    TRY(tiled_input(call, 1, normalize->channels, &b));
    if (b.data && b.dims[0] != a.dims[0])
        return wrong(call->api, call->name, "as many tokens in a as in b, found %s and %s", axes(&a).text, axes(&b).text);
    TRY(output(call, 0, a.dims, 2, &y));
    TRY(output(call, 1, (int64_t[]){a.dims[0], (int64_t)fours(normalize->channels)}, 2, &q));
    NormalizeWork work = {normalize, a.data, b.data, y.data, q.data, (size_t)a.dims[0]};
    return parallel(call, normalize_one, (work.padded + NORMALIZED - 1) / NORMALIZED, &work);
}

/* ---- Attention ---- */

typedef struct {
    Kernel base;
    size_t heads;
    float scale;
    Grid grid;
} Attention;

typedef struct {
    const Attention *attention;
    const float *x, *mask;
    float *y;
    uint8_t *q;
    size_t padded, channels, texts, length, blocks; /* channels of all heads; blocks of queries in a text */
    size_t mask_step;                               /* from one text's mask to the next one's: 0 where all share one */
    int no_memory;
} AttentionWork;

/* The part of a tile that holds tokens from `token` up to `end`. */
typedef struct {
    Tile tile;
    size_t inside, count;
} Piece;

static Piece piece_at(size_t padded, size_t token, size_t end) {
    Tile tile = tile_at(padded, tile_of(padded, token));
    size_t inside = token - tile.start;
    return (Piece){tile, inside, least(tile.width - inside, end - token)};
}

/* Channels first to first + count of tokens begin to end, as to[count][stride]. */
static void gather(const AttentionWork *w, size_t first, size_t count, size_t begin, size_t end, float *to, size_t stride) {
    for (size_t token = begin; token < end;) {
        Piece p = piece_at(w->padded, token, end);
        const float *from = w->x + p.tile.start * 3 * w->channels + first * p.tile.width + p.inside;
        for (size_t c = 0; c < count; c++)
            memcpy(to + c * stride + token - begin, from + c * p.tile.width, p.count * sizeof *to);
        token += p.count;
    }
}

/* Keys up to the last one that is not masked. A masked one gets the weight 0 where another one is not masked. */
static size_t kept_keys(const float *mask, size_t length) {
    size_t keys = length;
    while (mask && keys && mask[keys - 1] < -1e30f) keys--;
    return keys ? keys : length;
}

static void attention_one(void *work, size_t index) {
    AttentionWork *w = work;
    size_t size = w->channels / w->attention->heads, head = index / w->blocks % w->attention->heads;
    size_t text = index / w->blocks / w->attention->heads, begin = text * w->length, end = begin + w->length;
    size_t first = begin + index % w->blocks * ATTENDED, tokens = least(ATTENDED, end - first), wide = padded(tokens);
    const float *mask = w->mask ? w->mask + text * w->mask_step : NULL;
    size_t keys = kept_keys(mask, w->length), stride = padded(keys), channel = head * size;

    float *memory = scratch((2 * size * stride + keys * wide + 2 * size * wide + size / 4 * wide) * sizeof *memory);
    if (!memory) {
        __atomic_store_n(&w->no_memory, 1, __ATOMIC_RELAXED);
        return;
    }
    float *k = memory, *v = k + size * stride, *scores = v + size * stride, *q = scores + keys * wide, *out = q + size * wide;
    uint32_t *words = (uint32_t *)(out + size * wide);
    Head h = {size, keys, q, k, v, wide, stride, w->attention->scale, mask};
    Piece whole = piece_at(w->padded, begin, end);
    if (whole.count == w->length) { /* keys and values are read where they are */
        const float *tile = w->x + whole.tile.start * 3 * w->channels + whole.inside;
        h.k = tile + (w->channels + channel) * whole.tile.width, h.v = h.k + w->channels * whole.tile.width;
        h.kv_stride = whole.tile.width;
    } else {
        gather(w, w->channels + channel, size, begin, begin + keys, k, stride);
        gather(w, 2 * w->channels + channel, size, begin, begin + keys, v, stride);
    }
    Piece asked = piece_at(w->padded, first, first + tokens);
    if (asked.count == wide) { /* queries too, where no row of sixteen has tokens of another text */
        h.q = w->x + asked.tile.start * 3 * w->channels + channel * asked.tile.width + asked.inside, h.q_stride = asked.tile.width;
    } else {
        if (tokens < wide) memset(q, 0, size * wide * sizeof *q);
        gather(w, channel, size, first, first + tokens, q, wide);
    }

    path->attend(&h, wide, out, scores);
    path->quantize(out, wide, size, wide, words, wide, w->attention->grid);
    for (size_t token = first; token < first + tokens;) {
        Piece p = piece_at(w->padded, token, first + tokens);
        size_t bytes = p.count * sizeof(float), from = token - first;
        size_t to = p.tile.start * w->channels + channel * p.tile.width + p.inside;
        for (size_t c = 0; c < size && w->y; c++) memcpy(w->y + to + c * p.tile.width, out + c * wide + from, bytes);
        to = p.tile.start * w->channels / 4 + channel / 4 * p.tile.width + p.inside;
        for (size_t c = 0; c < size / 4 && w->q; c++)
            memcpy(w->q + 4 * (to + c * p.tile.width), words + c * wide + from, bytes);
        token += p.count;
    }
    give_back(memory);
}

static OrtStatus *attention_create(void *kernel, const OrtKernelInfo *info) {
    Attention *attention = kernel;
    const Kernel *k = &attention->base;
    int64_t heads;
    TRY(integer(k, info, "heads", 1, INT32_MAX, &heads));
    attention->heads = (size_t)heads;
    TRY(number(k, info, "scale", -FLT_MAX, &attention->scale));
    return grid(k, info, &attention->grid);
}

static OrtStatus *attention_compute(const void *kernel, const Call *call) {
    const Attention *attention = kernel;
    Tensor x, like, mask, y, q;
    TRY(tiled_input(call, 0, 0, &x));
    TRY(input(call, 1, &like));
    TRY(input(call, 2, &mask));
    size_t channels = (size_t)x.dims[1] / 3;
    if ((size_t)x.dims[1] % (12 * attention->heads))
        return wrong(call->api, call->name, "3 x %zu heads of a multiple of 4 channels in x, found %s", attention->heads, axes(&x).text);
    if (like.rank != 3) return wrong(call->api, call->name, "like as float[texts, length, channels], found %s", axes(&like).text);
    AttentionWork w = {.attention = attention, .x = x.data, .mask = mask.data, .padded = (size_t)x.dims[0], .channels = channels,
                       .texts = (size_t)like.dims[0], .length = (size_t)like.dims[1]};
    if (w.padded != padded(w.texts * w.length))
        return wrong(call->api, call->name, "as many tokens in x as in like, in sixteens, found %s and %s", axes(&x).text, axes(&like).text);
    if (mask.data) {
        int fits = mask.rank == 4 && mask.dims[1] == 1 && mask.dims[2] == 1 && mask.dims[3] == like.dims[1];
        if (!fits || (mask.dims[0] != like.dims[0] && mask.dims[0] != 1))
            return wrong(call->api, call->name, "mask as float[texts, 1, 1, length], found %s for texts of %s", axes(&mask).text,
                         axes(&like).text);
        w.mask_step = mask.dims[0] == 1 ? 0 : w.length;
    }
    TRY(output(call, 0, (int64_t[]){x.dims[0], (int64_t)channels}, 2, &y));
    TRY(output(call, 1, (int64_t[]){x.dims[0], (int64_t)channels}, 2, &q));
    w.y = y.data, w.q = q.data, w.blocks = (w.length + ATTENDED - 1) / ATTENDED;
    TRY(parallel(call, attention_one, w.texts * attention->heads * w.blocks, &w));
    return w.no_memory ? no_memory(call->api) : NULL;
}

/* ---- The list of operators ---- */

#define F {ORT_FLOAT, REQUIRED}
#define F_OR_NONE {ORT_FLOAT, OPTIONAL}
#define U8 {ORT_UINT8, REQUIRED}
#define U8_OR_NONE {ORT_UINT8, OPTIONAL}

Operator operators[] = {
    {.name = "Tile", .inputs = 1, .input = {F}, .outputs = 1, .output = {F}, .size = sizeof(Kernel), .compute = tile},
    {.name = "Untile", .inputs = 2, .input = {F, F}, .outputs = 1, .output = {F}, .size = sizeof(Kernel), .compute = untile},
    {.name = "Quantize", .inputs = 1, .input = {F}, .outputs = 1, .output = {U8}, .size = sizeof(Quantize),
     .create = quantize_create, .compute = quantize_compute},
    {.name = "SparseLinear", .inputs = 7, .input = {U8, {ORT_INT32, REQUIRED}, U8, U8, {ORT_UINT16, REQUIRED}, F, F},
     .outputs = 2, .output = {F_OR_NONE, U8_OR_NONE}, .size = sizeof(Linear),
     .create = linear_create, .compute = linear_compute, .release = linear_release},
    {.name = "AddNormalize", .inputs = 4, .input = {F, F_OR_NONE, F, F}, .outputs = 2, .output = {F, U8_OR_NONE},
     .size = sizeof(Normalize), .create = normalize_create, .compute = normalize_compute},
    {.name = "Attention", .inputs = 3, .input = {F, F, F_OR_NONE}, .outputs = 2, .output = {F_OR_NONE, U8_OR_NONE},
     .size = sizeof(Attention), .create = attention_create, .compute = attention_compute},
};
const size_t operator_count = sizeof operators / sizeof *operators;
