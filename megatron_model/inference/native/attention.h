/* Attention of one head over what its cache keeps, in float32 or (KEEP, KEPT, LOAD) bfloat16.
 *
 * Keys lie in pieces of PIECE positions, each (D, PIECE), so that scores of many positions are made
 * at once and memory is read in its order; values (positions, D rounded up to LANES).
 */
#ifndef PIECE
#define PIECE 64
#define VECTORS (PIECE / LANES)
INLINE int64_t rounded_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
#endif

/* Keep the key and value of `position`, and mix what it attends to into `mixed` (D). Positions
 * before `from` are too far away to count. */
static void NAMED(attend)(const float *query, const float *key, const float *value, KEPT *keys,
                          KEPT *values, float *scores, float slope, float *mixed, int64_t depth,
                          int64_t position, int64_t from) {
    const int64_t padded = rounded_up(depth, LANES), length = position + 1;
    KEPT *kept = keys + position / PIECE * PIECE * depth + position % PIECE;
    for (int64_t d = 0; d < depth; d++) {
        kept[d * PIECE] = KEEP(key[d]);
        values[position * padded + d] = KEEP(value[d]);
    }
    from = from / PIECE * PIECE;
    wide highest = (wide){} - 3e38f;
    wide lanes;
    for (int lane = 0; lane < LANES; lane++) lanes[lane] = (float)lane;
    for (int64_t t = from; t < length; t += PIECE) {
        const KEPT *row = keys + t * depth;
        wide score[VECTORS];
        for (int v = 0; v < VECTORS; v++)
            score[v] = slope * (lanes + (float)(t + v * LANES - position));
        for (int64_t d = 0; d < depth; d++, row += PIECE)
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) score[v] += query[d] * LOAD(row + v * LANES);
        for (int v = 0; v < VECTORS; v++) {
            const wide later = lanes + (float)(t + v * LANES - position);
            score[v] = choose(later > 0.0f, (wide){} - 3e38f, score[v]);
            highest = larger(score[v], highest);
            store(scores + t + v * LANES, score[v]);
        }
    }
    const float most = highest_of(highest);
    wide total = (wide){};
    for (int64_t t = from; t < length; t += LANES) {
        const wide weight = exponential(load(scores + t) - most);
        total += weight;
        store(scores + t, weight);
    }
    const float share = 1.0f / sum_of(total);
    for (int64_t d = 0; d < padded; d += LANES) {
        wide sums[4] = {0};
        int64_t t = from;
        for (; t + 4 <= length; t += 4)
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++)
                sums[i] += scores[t + i] * LOAD(values + (t + i) * padded + d);
        for (; t < length; t++) sums[0] += scores[t] * LOAD(values + t * padded + d);
        const wide sum = ((sums[0] + sums[1]) + (sums[2] + sums[3])) * share;
        memcpy(mixed + d, &sum, smaller(LANES, depth - d) * sizeof *mixed);
    }
}
