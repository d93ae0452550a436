/* The vocabulary of a small network, read in one call. kernels/readout.py has the contract and the
   plain form; all is float32 but for the running sums that a token is drawn from, float64.

   A position's bits depend on its own hidden state alone. */

#include "lanes.h"

#define TOGETHER 64 /* positions whose logits are there at the same time */

struct reading { /* kernels/readout.py has the contract; S positions, L a row */
    int64_t positions, length, vocabulary, width, half;
    float cap, scale;
    const float *hidden;      /* (S, D) */
    const void *embedding;    /* (V, D) */
    const float *temperature; /* (rows) */
    const double *uniform;    /* (S) */
    const float *bias;        /* (V), or null */
    int64_t *token, *best;    /* (S) */
    float *entropy, *soft;    /* (S), (S, D) */
};

/* One position: its logits, `wide` of them with room at the end, become probabilities. */
OUT void read_one(const struct reading *r, int64_t s, float *x, int64_t wide) {
    int64_t v = r->vocabulary, best = 0;
    float heat = r->temperature[s / r->length], cap = r->cap, last[LANES] = {0};
    if (r->bias) memcpy(last, r->bias + v / LANES * LANES, 4 * (v % LANES));
    for (int64_t i = 0; i < wide; i += LANES) {
        vec y = cap - 2.0f * cap / (exponential(load(x, i, 0) * (2.0f / cap)) + 1.0f);
        if (r->bias) y += load(i + LANES > v ? last : r->bias + i, 0, 0);
        store(x + i, y / heat);
    }
    for (int64_t i = v; i < wide; i++) x[i] = -INFINITY;
    float most = x[0];
    vec mosts = (vec){} + most, total = {}, energy = {};
    for (int64_t i = 0; i < wide; i += LANES) mosts = pick(load(x, i, 0) > mosts, load(x, i, 0), mosts);
    for (int j = 0; j < LANES; j++) most = mosts[j] > most ? mosts[j] : most;
    while (best < v && x[best] != most) best++;
    r->best[s] = best < v ? best : 0;
    for (int64_t i = 0; i < wide; i += LANES) {
        vec from_best = load(x, i, 0) - most, p = exponential(from_best);
        total += p, energy += pick(p > 0.0f, p * from_best, p);
        store(x + i, p);
    }
    float sums = sum(total);
    r->entropy[s] = logf(sums) - sum(energy) / sums;
    for (int64_t i = 0; i < wide; i += LANES) store(x + i, load(x, i, 0) / sums);
    double all = 0, passed = 0;
    for (int64_t i = 0; i < v; i++) all += x[i];
    double aim = r->uniform[s] * all;
    int64_t token = 0, edge = 0; /* rounding may put the aim at the end: the last with mass */
    for (; token < v; token++) {
        passed += x[token];
        if (x[token] > 0) edge = token;
        if (passed > aim) break;
    }
    r->token[s] = token < v ? token : edge;
    if (r->half) rounded(x, wide);
}

/* 0, or 1 if there is no memory for scratch. */
int diffusiongemma_readout(const struct reading *r) {
    int64_t v = r->vocabulary, d = r->width, wide = (v + 15) / 16 * 16;
    int64_t some = r->positions < TOGETHER ? r->positions : TOGETHER;
    float *table = malloc(4 * (some * wide + v * d) + 2 * some * d), *logits = table + v * d;
    if (!table) return 1;
    for (int64_t i = 0; i < v * d; i += LANES) store(table + i, load(r->embedding, i, r->half));
    for (int64_t s = 0; s < r->positions; s += TOGETHER) {
        int64_t here = r->positions - s < TOGETHER ? r->positions - s : TOGETHER;
        float *soft = r->soft + s * d;
        product(r->hidden + s * d, here, r->embedding, v, d, r->half, logits, wide,
                (uint16_t *)(logits + some * wide));
        for (int64_t i = 0; i < here; i++) read_one(r, s + i, logits + i * wide, wide);
        memset(soft, 0, 4 * here * d);
        mixed(logits, wide, here, table, d, v, d, soft, d);
        for (int64_t i = 0; i < here * d; i += LANES) store(soft + i, load(soft, i, 0) * r->scale);
    }
    free(table);
    return 0;
}

/* 1 if a vocabulary of two is read as it must be, in both formats: then all of this can run here. */
int diffusiongemma_probe(void) {
    float wide[32] = {0}, hidden[16], soft[16], heat = 1, entropy = 0;
    uint16_t narrow[32] = {0};
    double uniform = 0.5;
    int64_t token = 0, best = 0, right = 0;
    for (int i = 0; i < 16; i++) wide[16 + i] = 1, narrow[16 + i] = 0x3f80, hidden[i] = 0.25f;
    for (int half = 0; half < 2; half++) {
        const void *embedding = half ? (const void *)narrow : wide;
        struct reading r = {1, 1, 2, 16, half, 30, 1, hidden, embedding, &heat, &uniform, NULL,
                            &token, &best, &entropy, soft};
        token = best = 0;
        if (diffusiongemma_readout(&r)) return 0;
        int near = fabsf(entropy - 0.0918f) < 0.01f; /* of logits 0 and 30 tanh(4 / 30) */
        for (int i = 0; i < 16; i++) near &= fabsf(soft[i] - 0.9816f) < 0.01f;
        right += near && token == 1 && best == 1;
    }
    return right == 2;
}
