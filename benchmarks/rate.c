/* The rate of a path's inner loop alone: kernels/path.c is compiled beside this file. */
#include "path.h"

#include <stdlib.h>
#include <time.h>

#define JOINED_(a, b) a##b
#define JOINED(a, b) JOINED_(a, b)
#define EXPORTED __attribute__((visibility("default")))

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Cycles in a second: an addition that waits for the one before takes one. */
EXPORTED double hertz(void) {
    enum { STEPS = 200000000 };
    double began = seconds();
    for (uint64_t i = 0, sum = 0; i < STEPS; i++) __asm__ volatile("add $1, %0" : "+r"(sum));
    return STEPS / (seconds() - began);
}

/* Seconds of one product of the weight with a tile of `width` tokens, the least of `repeats`; below 0 for a damaged weight.
 * Outputs are taken in parts of eight chunks at most, as the operator does. */
EXPORTED double product_seconds(size_t outputs, size_t inputs, size_t stored, const int32_t *words, const uint8_t *index,
                                const uint8_t *counts, const uint16_t *rows, size_t width, int repeats) {
    enum { PART = 8 };
    Sparse s = {.words = words, .index = index, .counts = counts, .rows = rows};
    double best = -1;
    uint32_t *x = aligned_alloc(64, (inputs + 3) / 4 * width * sizeof *x);
    int32_t *acc = aligned_alloc(64, PART * CHUNK * width * sizeof *acc);
    if (x && acc && sparse_complete(&s, outputs, inputs, stored) == SPARSE_GOOD) {
        for (size_t i = 0; i < (inputs + 3) / 4 * width; i++) x[i] = (uint32_t)i * UINT32_C(2654435761);
        for (int i = 0; i < repeats; i++) {
            double began = seconds();
            for (size_t first = 0; first < s.chunks; first += PART)
                for (size_t block = 0; block < s.blocks; block++)
                    for (size_t chunk = first; chunk < s.chunks && chunk < first + PART; chunk++)
                        JOINED(path_, PATH).multiply(&s, block, chunk, x, width, acc + (chunk - first) * CHUNK * width);
            double took = seconds() - began;
            if (best < 0 || took < best) best = took;
        }
    }
    sparse_release(&s), free(x), free(acc);
    return best;
}
