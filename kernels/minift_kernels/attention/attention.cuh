// What the kernels of attention have in common: which rows belong to which text, and dropout's mask.
#pragma once

#include "device.h"
#include "philox.h"

__device__ __forceinline__ float minus_infinity() { return __int_as_float(0xff800000); }  // NVRTC has no math.h

/// Where a text begins and ends among the rows.
struct Segment {
    int start, end;

    __device__ int length() const { return end - start; }
};

/// Segment `text` of (start, end) pairs; whatever they say, it stays within `rows` rows.
__device__ __forceinline__ Segment segment_of(const long long* segments, int text, int rows) {
    int start = (int)segments[2 * text], end = (int)segments[2 * text + 1];
    start = min(max(start, 0), rows);
    return {start, min(max(end, start), rows)};
}

/// How many keys query i of its text sees. Causal aligns the ends: the last query sees every key.
__device__ __forceinline__ int keys_seen(int i, int queries, int keys, bool causal) {
    return causal ? min(keys, max(0, keys - queries + i + 1)) : keys;
}

/// Which run of rows a block works on.
struct Tile {
    int text;   // -1: there is no such tile
    int first;  // its first row, counted from the text's own first
};

/// Tile number `tile`, where each text is cut into tiles of `tile_rows` rows and these are numbered text by
/// text.
///
/// Nobody on the host knows how long the texts are, so there is no list of tiles: a grid has as many blocks
/// as there can be tiles, and each warp finds its own. A lane counts the tiles of a text, the warp adds the
/// counts up from the first text on, and the first text that reaches beyond `tile` holds it; 32 texts at a
/// time. All lanes of the warp take part.
__device__ __forceinline__ Tile find_tile(int tile, int tile_rows, const long long* segments, int texts, int rows) {
    int lane = threadIdx.x % 32, before = 0;  // tiles of the texts that are behind us
    for (int first = 0; first < texts; first += 32) {
        int text = first + lane;
        int own = text < texts ? (segment_of(segments, text, rows).length() + tile_rows - 1) / tile_rows : 0;
        int up_to = own;  // tiles of the texts first to text
        for (int distance = 1; distance < 32; distance *= 2) {
            int lower = __shfl_up_sync(0xffffffff, up_to, distance);
            if (lane >= distance) up_to += lower;
        }
        unsigned int reach = __ballot_sync(0xffffffff, before + up_to > tile);
        if (reach) {
            int source = __ffs(reach) - 1;
            int tiles_before = before + __shfl_sync(0xffffffff, up_to - own, source);
            return {first + source, (tile - tiles_before) * tile_rows};
        }
        before += __shfl_sync(0xffffffff, up_to, 31);
    }
    return {-1, 0};
}

/// What each probability is multiplied by: 0 if it is dropped, scale = 1 / (1 - dropout) if it is kept.
struct Dropout {
    unsigned int threshold;  // a probability is kept where its random word is at least this; 0: all are
    float scale;
    uint2 key;

    /// For query row t, head n and keys 4 block to 4 block + 3 of its text.
    __device__ float4 of_four_keys(int t, int n, int block) const {
        if (threshold == 0) return make_float4(1.0f, 1.0f, 1.0f, 1.0f);
        uint4 words = philox(make_uint4(block, t, n, 1), key);
        return make_float4(of_word(words.x), of_word(words.y), of_word(words.z), of_word(words.w));
    }
    __device__ float of_key(int t, int n, int j) const {
        float4 kept = of_four_keys(t, n, j / 4);
        return j % 4 < 2 ? (j % 2 ? kept.y : kept.x) : (j % 2 ? kept.w : kept.z);
    }
    __device__ float of_word(unsigned int word) const { return word >= threshold ? scale : 0.0f; }
};
