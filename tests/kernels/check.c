/* The portable path against loops over single numbers, for processors that run no test of Python. Ends with 1 at a difference. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "path.h"

#define EXPECT(truth)                                                                       \
    do {                                                                                    \
        if (!(truth)) return printf("line %d: expected %s\n", __LINE__, #truth), 1;         \
    } while (0)

static uint32_t state = 1;
static uint32_t any(uint32_t below) { return (state = state * 1664525 + 1013904223) / 65536 % below; }
static float real(void) { return (float)any(20001) / 10000 - 1; }

enum { OUTPUTS = 77, INPUTS = 900, GROUPS = 225, BLOCKS = 3, SIZE = 20, KEYS = 41 };
static int8_t weight[OUTPUTS][INPUTS];
static int32_t words[OUTPUTS * GROUPS];
static uint8_t group[OUTPUTS * GROUPS], counts[BLOCKS][OUTPUTS];
static uint16_t rows[BLOCKS][OUTPUTS];
static uint8_t x[GROUPS][WIDEST][4];
static int32_t acc[(OUTPUTS + CHUNK) * WIDEST];
static float y[OUTPUTS * 16], scale[OUTPUTS], bias[OUTPUTS];
static uint32_t q[(OUTPUTS + 3) / 4][WIDEST];

/* Words in the order of the outputs turned around in each chunk. */
static size_t store(uint32_t percent) {
    size_t stored = 0;
    for (int n = 0; n < OUTPUTS; n++)
        for (int k = 0; k < INPUTS; k++) weight[n][k] = (int8_t)(any(100) < percent ? (int)any(256) - 128 : 0);
    memset(counts, 0, sizeof counts);
    for (int b = 0; b < BLOCKS; b++)
        for (int i = 0; i < OUTPUTS; i++) {
            int begin = i / CHUNK * CHUNK, end = begin + CHUNK < OUTPUTS ? begin + CHUNK : OUTPUTS, n = begin + end - 1 - i;
            rows[b][i] = (uint16_t)n;
            for (int g = b * BLOCK; g < (b + 1) * BLOCK && g < GROUPS; g++) {
                memcpy(words + stored, &weight[n][4 * g], 4);
                if (!words[stored]) continue;
                group[stored++] = (uint8_t)(g - b * BLOCK), counts[b][i]++;
            }
        }
    return stored;
}

static int check_products(uint32_t percent, int width, int zero_point, Grid grid) {
    Sparse s = {.words = words, .index = group, .counts = counts[0], .rows = rows[0]};
    EXPECT(sparse_complete(&s, OUTPUTS, INPUTS, store(percent)) == SPARSE_GOOD);
    uint32_t *in = malloc(sizeof(uint32_t) * GROUPS * (size_t)width);
    for (int g = 0; g < GROUPS; g++)
        for (int t = 0; t < width; t++) {
            for (int i = 0; i < 4; i++) x[g][t][i] = (uint8_t)(any(4) ? any(256) : 255);
            memcpy(in + g * width + t, x[g][t], 4);
        }
    float *out = malloc(sizeof(float) * OUTPUTS * (size_t)width);
    uint32_t *on_grid = malloc(sizeof(uint32_t) * (OUTPUTS + 3) / 4 * (size_t)width);
    for (int n = 0; n < OUTPUTS; n++) scale[n] = real() * 1e-4f, bias[n] = real();
    Affine affine = {scale, bias, s.sums, zero_point, NO_ACTIVATION};
    for (size_t chunk = 0; chunk < s.chunks; chunk++) {
        size_t begin = chunk * CHUNK, end = begin + CHUNK < OUTPUTS ? begin + CHUNK : OUTPUTS;
        int32_t *sums = acc + begin * (size_t)width;
        for (size_t b = 0; b < BLOCKS; b++) path_portable.multiply(&s, b, chunk, in, (size_t)width, sums);
        path_portable.finish(&affine, sums, begin, end, (size_t)width, out, on_grid, grid);
    }
    for (int n = 0; n < OUTPUTS; n++)
        for (int t = 0; t < width; t++) {
            int32_t sum = 0, all = 0;
            for (int k = 0; k < INPUTS; k++) sum += weight[n][k] * x[k / 4][t][k % 4], all += weight[n][k];
            EXPECT(acc[n * width + t] == sum);
            float product = (float)(sum - zero_point * all) * scale[n], v = product + bias[n];
            EXPECT(out[n * width + t] == v);
            float rounded = nearbyintf(v * (1 / grid.scale)) + (float)grid.zero_point;
            uint32_t expected = rounded < 0 ? 0 : rounded > 255 ? 255 : (uint32_t)rounded;
            EXPECT((on_grid[n / 4 * width + t] >> 8 * (n % 4) & 255) == expected);
        }
    free(in), free(out), free(on_grid), sparse_release(&s);
    return 0;
}

/* The rest in double precision. */
static int check_floats(void) {
    static float a[SIZE][32], out[SIZE][32], k[SIZE][KEYS], v[SIZE][KEYS], mask[KEYS], scratch[KEYS * 32];
    for (int c = 0; c < SIZE; c++) {
        for (int t = 0; t < 32; t++) a[c][t] = real();
        for (int t = 0; t < KEYS; t++) k[c][t] = real(), v[c][t] = real();
    }
    for (int t = 0; t < KEYS; t++) mask[t] = any(2) ? 0 : -3.40282347e38f;
    Head head = {SIZE, KEYS, a[0], k[0], v[0], 32, KEYS, 0.5f, mask};
    path_portable.attend(&head, 32, out[0], scratch);
    for (int t = 0; t < 32; t++) {
        double weights[KEYS], total = 0;
        for (int j = 0; j < KEYS; j++) {
            double score = 0;
            for (int c = 0; c < SIZE; c++) score += (double)a[c][t] * k[c][j];
            total += weights[j] = exp(0.5 * score + mask[j]);
        }
        for (int c = 0; c < SIZE; c++) {
            double mean = 0;
            for (int j = 0; j < KEYS; j++) mean += weights[j] * v[c][j] / total;
            EXPECT(fabs(out[c][t] - mean) < 1e-5);
        }
    }
    for (int c = 0; c < SIZE; c++) scale[c] = real(), bias[c] = real();
    path_portable.normalize(a[0], NULL, scale, bias, 1e-5f, SIZE, 32, 32, out[0], q[0], (Grid){1, 0});
    for (int t = 0; t < 32; t++) {
        double mean = 0, squares = 0;
        for (int c = 0; c < SIZE; c++) mean += a[c][t] / (double)SIZE;
        for (int c = 0; c < SIZE; c++) squares += (a[c][t] - mean) * (a[c][t] - mean) / SIZE;
        for (int c = 0; c < SIZE; c++)
            EXPECT(fabs(out[c][t] - ((a[c][t] - mean) / sqrt(squares + 1e-5) * scale[c] + bias[c])) < 1e-5);
    }
    for (int activation = GELU; activation <= GELU_TANH; activation++) {
        static int32_t none[OUTPUTS * 16], zeros[OUTPUTS];
        for (int n = 0; n < OUTPUTS; n++) bias[n] = 6 * real();
        Affine affine = {scale, bias, zeros, 0, (Activation)activation};
        path_portable.finish(&affine, none, 0, OUTPUTS, 16, y, NULL, (Grid){1, 0});
        for (int n = 0; n < OUTPUTS; n++) {
            double z = bias[n], inner = activation == GELU ? erf(z / sqrt(2)) : tanh(0.7978845608 * (z + 0.044715 * z * z * z));
            EXPECT(fabs(y[16 * n] - z * (1 + inner) / 2) < 1e-5);
        }
    }
    return 0;
}

int main(void) {
    int checks = 0, percents[] = {0, 10, 40, 100}, zero_points[] = {0, 100, 255};
    for (int p = 0; p < 4; p++)
        for (int z = 0; z < 3; z++)
            for (int width = 16; width <= WIDEST; width += 16, checks++)
                if (check_products((uint32_t)percents[p], width, zero_points[z], (Grid){0.03f, 100})) return 1;
    if (check_floats()) return 1;
    printf("%d shapes of products, attention, normalization, GELU: %s\n", checks, path_portable.name);
    return 0;
}
