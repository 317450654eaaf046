#include "sparse.h"

#include <stdlib.h>
#include <string.h>

static size_t least(size_t a, size_t b) { return a < b ? a : b; }

/* Whether a chunk's rows are its outputs, each once. */
static int is_order(const uint16_t *rows, size_t begin, size_t end) {
    uint32_t seen = 0;
    for (size_t i = begin; i < end; i++) {
        if (rows[i] < begin || rows[i] >= end || seen >> (rows[i] - begin) & 1) return 0;
        seen |= UINT32_C(1) << (rows[i] - begin);
    }
    return 1;
}

SparseStatus sparse_complete(Sparse *s, size_t outputs, size_t inputs, size_t stored) {
    s->outputs = outputs, s->groups = (inputs + 3) / 4;
    s->blocks = (s->groups + BLOCK - 1) / BLOCK, s->chunks = (outputs + CHUNK - 1) / CHUNK;
    s->starts = malloc((s->blocks * s->chunks + 1) * sizeof *s->starts);
    s->sums = calloc(outputs + 1, sizeof *s->sums);
    if (!s->starts || !s->sums) return SPARSE_NO_MEMORY;
    s->narrow = 1;
    size_t at = 0;
    for (size_t b = 0; b < s->blocks; b++) {
        size_t groups = least(BLOCK, s->groups - b * BLOCK);
        const uint8_t *counts = s->counts + b * outputs;
        const uint16_t *rows = s->rows + b * outputs;
        for (size_t begin = 0; begin < outputs; begin += CHUNK) {
            size_t end = least(begin + CHUNK, outputs);
            s->starts[b * s->chunks + begin / CHUNK] = at;
            if (!is_order(rows, begin, end)) return SPARSE_DAMAGED;
            for (size_t i = begin; i < end; i++)
                for (size_t stop = at + counts[i]; at < stop; at++) {
                    if (at >= stored || s->index[at] >= groups) return SPARSE_DAMAGED;
                    int8_t four[4];
                    memcpy(four, s->words + at, sizeof four);
                    s->sums[rows[i]] += four[0] + four[1] + four[2] + four[3];
                    s->narrow &= abs(four[0]) + abs(four[1]) <= 128 && abs(four[2]) + abs(four[3]) <= 128;
                }
        }
    }
    return at == stored ? SPARSE_GOOD : SPARSE_DAMAGED;
}

void sparse_release(Sparse *s) { free(s->starts), free(s->sums); }
