/* The layout of activations between the operators: tokens innermost, in tiles.
 *
 * A tensor [tokens, channels] is padded to a multiple of 16 tokens and cut into tiles of at most 128 tokens, as equal as can
 * be. A tile is [channels][width] floats, or [channels / 4][width] words of four channels, uint8, the first one in the lowest
 * byte. Channels that fill the last word are zero. Tiles follow one another. Padding has any value: no token reads another's.
 */
#ifndef PRUNEONCE_TILES_H
#define PRUNEONCE_TILES_H

#include <stddef.h>

enum { LANES = 16, WIDEST = 128 };

typedef struct {
    size_t start, width; /* tokens; the tile's elements begin at start * channels */
} Tile;

static inline size_t padded(size_t tokens) { return (tokens + LANES - 1) / LANES * LANES; }

static inline size_t tile_count(size_t padded) { return (padded + WIDEST - 1) / WIDEST; }

/* Tile `index` of `tile_count(padded)`: the first ones are 16 tokens wider where they cannot all be equal. */
static inline Tile tile_at(size_t padded, size_t index) {
    size_t count = tile_count(padded), units = padded / LANES, least = units / count, wider = units % count;
    size_t before = index * least + (index < wider ? index : wider);
    return (Tile){before * LANES, (least + (index < wider)) * LANES};
}

/* The tile that holds a token. */
static inline size_t tile_of(size_t padded, size_t token) {
    size_t count = tile_count(padded), units = padded / LANES, least = units / count, wider = units % count;
    size_t unit = token / LANES, first = wider * (least + 1);
    return unit < first ? unit / (least + 1) : wider + (unit - first) / least;
}

#endif
