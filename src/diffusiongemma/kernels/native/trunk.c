/* One pass of packed tokens through all layers of a small network, in one call.

   A small network's step is a thousand operations of a few microseconds each, and most of that is
   the calls. Here it is one call: weights, keys and values are read where torch has them, in their
   own format; everything between is float32. The plain form is model/model.py `trunk`; names are
   those of the modules there.

   Contract: a token's bits depend on itself and on what it sees, never on its neighbours in the
   batch. Every product's element is summed in one order, whatever tile it falls into; a query's
   softmax begins at its own first key.

   Shapes: S packed tokens, D channels, N query heads and K key heads of H, F hidden, E experts.
   D, H and F are multiples of 16. Compiled by build.py, called by model/native.py. */

#include "lanes.h"
#include "team.h"

#define BLOCK 32          /* queries that attend together */
#define PANEL (2 * LANES) /* keys whose scores are made together */

struct layer {
    const void *before_attention, *q, *k, *v, *o, *q_norm, *k_norm, *after_attention;
    const void *before_dense, *gate, *up, *down, *after_dense;
    const void *router, *router_scale, *expert_scale;
    const void *before_experts, *gate_up, *expert_down, *after_experts, *after_branches, *scalar;
    const float *cos, *sin; /* (positions, H), as norm_rope.rotation makes them */
    float *k_out, *v_out;   /* (S, K, H), or null: nothing is kept */
    int64_t key_heads, head, window; /* window 0: all */
};
struct seen { /* what a row has of a layer: `count` tokens, the last of them just before it */
    const void *k, *v;
    int64_t count, per_head, per_token; /* strides, in elements */
};
struct row {
    int64_t tokens, position;
};
struct pass {
    int64_t layers, rows, width, heads, hidden, experts, top, expert_hidden;
    int64_t causal, half; /* half: weights, keys and values are bfloat16 */
    int64_t threads;      /* that share the tokens, at most */
    float eps;
    const struct layer *layer; /* (layers) */
    const struct row *row;     /* (rows) */
    const struct seen *seen;   /* (rows, layers) */
    const void *norm;          /* the last one */
    /* Self-conditioning; null where there is none, as in the encoder. */
    const void *soft_norm, *soft_gate, *soft_up, *soft_down;
    const float *soft; /* (S, D), or null: all zeros */
    float *x;          /* (S, D): embedded tokens in, hidden states out */
};

/* ---- a layer ---- */

struct work { /* of one thread, which has `tokens` of all, from `start` on; scratch is (tokens, ...) */
    int64_t start, tokens;
    struct team *team;
    const float *soft;
    float *x, *a, *b, *c;    /* D */
    float *q, *mixed;        /* N H */
    float *keys[2], *new[2]; /* (S, K H): of all threads, for layers of even and of odd number */
    float *gate, *up;         /* the widest F; gate and up of an expert lie side by side */
    float *scores, *group, *answer; /* (BLOCK N/K, keys), (BLOCK N/K, H) twice */
    float *panel, *values;    /* (H, PANEL), (keys, H) */
    float *share;             /* top */
    uint16_t *narrow;         /* the widest of all */
    int64_t *expert;          /* top */
};

/* A row's keys and values of one head, from what it had before to what it brings. */
struct side {
    const char *old; /* bfloat16 or float32, from the first that is seen */
    const float *new;
    int64_t kept, per_old, per_new;
};
IN vec channels(const struct side *from, int64_t key, int64_t i, int half) {
    if (key < from->kept) return load(from->old, key * from->per_old + i, half);
    return load(from->new, (key - from->kept) * from->per_new + i, 0);
}

/* scores (rows, keys) = queries (rows, H) @ keys.T, PANEL keys at a time, turned to lie side by
   side. `scores` has whole panels; what stands there after the last key means nothing. */
OUT void scored(const float *queries, int64_t rows, const struct side *from, int64_t keys, int64_t h,
                int half, float *panel, float *scores, int64_t per) {
    memset(scores, 0, 4 * rows * per);
    for (int64_t key = 0; key < keys; key += PANEL) {
        for (int64_t k = 0; k < PANEL; k += LANES)
            for (int64_t i = 0; i < h; i += LANES) {
                vec square[LANES];
                for (int j = 0; j < LANES; j++)
                    square[j] = key + k + j < keys ? channels(from, key + k + j, i, half) : (vec){};
                transposed(square);
                for (int j = 0; j < LANES; j++) store(panel + (i + j) * PANEL + k, square[j]);
            }
        mixed(queries, h, rows, panel, PANEL, h, PANEL, scores + key, per);
    }
}

IN void attend_block(const struct pass *pass, const struct layer *l, const struct seen *seen,
                     struct work *w, int64_t first, int64_t tokens, int64_t start, int64_t stop,
                     int64_t head, const float *k_new, const float *v_new, int half) {
    int64_t h = l->head, group = pass->heads / l->key_heads, per_new = l->key_heads * h;
    int64_t all = pass->heads * h, rows = (stop - start) * group, old = seen->count;
    int64_t end = old + (pass->causal ? stop : tokens), from = 0;
    if (pass->causal && l->window && old + start + 1 > l->window) from = old + start + 1 - l->window;
    int64_t keys = end - from, kept = from < old ? old - from : 0, skip = from < old ? 0 : from - old;
    int64_t per = (keys + PANEL - 1) / PANEL * PANEL;
    for (int64_t r = 0; r < rows; r++) {
        int64_t token = first + start + r / group - w->start;
        memcpy(w->group + r * h, w->q + token * all + (head * group + r % group) * h, 4 * h);
    }
    int64_t place = (head * seen->per_head + from * seen->per_token) * (half ? 2 : 4);
    int64_t new = (first + skip) * per_new + head * h;
    struct side k = {(const char *)seen->k + place, k_new + new, kept, seen->per_token, per_new};
    struct side v = {(const char *)seen->v + place, v_new + new, kept, seen->per_token, per_new};
    scored(w->group, rows, &k, keys, h, half, w->panel, w->scores, per);
    float inverse[BLOCK * 64];
    for (int64_t r = 0; r < rows; r++) {
        int64_t low = 0, high = keys;
        if (pass->causal) {
            high = old + start + r / group + 1 - from;
            low = l->window && high > l->window ? high - l->window : 0;
        }
        float *x = w->scores + r * per;
        inverse[r] = 1.0f / softened(x + low, high - low);
        memset(x, 0, 4 * low), memset(x + high, 0, 4 * (keys - high));
    }
    for (int64_t key = 0; key < keys; key++)
        for (int64_t i = 0; i < h; i += LANES) store(w->values + key * h + i, channels(&v, key, i, half));
    memset(w->answer, 0, 4 * rows * h);
    mixed(w->scores, per, rows, w->values, h, keys, h, w->answer, h);
    for (int64_t r = 0; r < rows; r++) {
        int64_t token = first + start + r / group - w->start;
        float *to = w->mixed + token * all + (head * group + r % group) * h;
        for (int64_t i = 0; i < h; i += LANES) store(to + i, load(w->answer, r * h + i, 0) * inverse[r]);
    }
}

/* What of a row is this thread's: from *start up to where the second is returned. */
IN int64_t own(const struct work *w, int64_t first, int64_t length, int64_t *start) {
    int64_t stop = w->start + w->tokens - first;
    *start = w->start > first ? w->start - first : 0;
    return stop < length ? stop : length;
}

/* Queries, keys and values of this thread's tokens, normed and turned. */
IN void projected(const struct pass *pass, const struct layer *l, struct work *w, float *k_all,
                  float *v_all, int half) {
    int64_t d = pass->width, h = l->head, all = pass->heads * h, per = l->key_heads * h;
    int64_t first = 0, start, tokens = w->tokens;
    float *k_own = k_all + w->start * per, *v_own = v_all + w->start * per;
    product(w->a, tokens, l->q, all, d, half, w->q, all, w->narrow);
    product(w->a, tokens, l->k, per, d, half, k_own, per, w->narrow);
    if (l->v) product(w->a, tokens, l->v, per, d, half, v_own, per, w->narrow);
    else memcpy(v_own, k_own, 4 * tokens * per);
    for (int64_t r = 0; r < pass->rows; first += pass->row[r++].tokens) {
        int64_t stop = own(w, first, pass->row[r].tokens, &start);
        for (int64_t t = start; t < stop; t++) {
            const float *cos = l->cos + (pass->row[r].position + t) * h;
            const float *sin = l->sin + (pass->row[r].position + t) * h;
            float *q = w->q + (first + t - w->start) * all, *k = k_all + (first + t) * per;
            float *v = v_all + (first + t) * per;
            for (int64_t n = 0; n < all; n += h)
                normed(q + n, l->q_norm, h, pass->eps, half, q + n), turned(q + n, cos, sin, h);
            for (int64_t n = 0; n < per; n += h) {
                normed(k + n, l->k_norm, h, pass->eps, half, k + n), turned(k + n, cos, sin, h);
                normed(v + n, 0, h, pass->eps, half, v + n);
            }
        }
    }
    if (half) rounded(k_own, tokens * per), rounded(v_own, tokens * per);
    if (!l->k_out) return;
    memcpy(l->k_out + w->start * per, k_own, 4 * tokens * per);
    memcpy(l->v_out + w->start * per, v_own, 4 * tokens * per);
}

IN void attention(const struct pass *pass, int64_t number, struct work *w, int half) {
    const struct layer *l = pass->layer + number;
    int64_t first = 0, start;
    /* Another thread may still read the layer before, but none the one before that. */
    float *k = w->keys[number & 1], *v = w->new[number & 1];
    projected(pass, l, w, k, v, half);
    together(w->team);
    for (int64_t r = 0; r < pass->rows; first += pass->row[r++].tokens) {
        const struct seen *seen = pass->seen + r * pass->layers + number;
        int64_t length = pass->row[r].tokens, stop = own(w, first, length, &start);
        for (; start < stop; start += BLOCK)
            for (int64_t head = 0; head < l->key_heads; head++)
                attend_block(pass, l, seen, w, first, length, start,
                             start + BLOCK < stop ? start + BLOCK : stop, head, k, v, half);
    }
    product(w->mixed, w->tokens, l->o, pass->width, pass->heads * l->head, half, w->b, pass->width,
            w->narrow);
}

/* The best experts of each token, by number, and their shares. Reads the residual in x. */
OUT void routed(const struct pass *pass, const struct layer *l, struct work *w, int half) {
    int64_t d = pass->width, e = pass->experts, top = pass->top, tokens = w->tokens;
    float root = 1.0f / sqrtf((float)d);
    for (int64_t s = 0; s < tokens; s++) {
        float *y = w->a + s * d;
        normed(w->x + s * d, 0, d, pass->eps, half, y);
        for (int64_t i = 0; i < d; i += LANES)
            store(y + i, load(y, i, 0) * load(l->router_scale, i, half) * root);
    }
    product(w->a, tokens, l->router, e, d, half, w->gate, e, w->narrow);
    for (int64_t s = 0; s < tokens; s++) {
        float *score = w->gate + s * e;
        softened(score, e);
        float total = 0;
        for (int64_t g = 0; g < top; g++) {
            int64_t best = -1; /* taken ones are -1; where scores are no numbers, any will do */
            for (int64_t i = 0; i < e; i++)
                if (score[i] != -1 && (best < 0 || score[i] > score[best])) best = i;
            total += score[best];
            int64_t at = g; /* kept in order of their numbers */
            for (; at && w->expert[s * top + at - 1] > best; at--) {
                w->expert[s * top + at] = w->expert[s * top + at - 1];
                w->share[s * top + at] = w->share[s * top + at - 1];
            }
            w->expert[s * top + at] = best, w->share[s * top + at] = score[best];
            score[best] = -1;
        }
        for (int64_t g = 0; g < top; g++)
            w->share[s * top + g] *= one(l->expert_scale, w->expert[s * top + g], half) / total;
    }
}

IN void experts(const struct pass *pass, const struct layer *l, struct work *w, int half) {
    int64_t tokens = w->tokens, d = pass->width, f = pass->expert_hidden, top = pass->top, size = half ? 2 : 4;
    memset(w->c, 0, 4 * tokens * d);
    for (int64_t e = 0; e < pass->experts; e++) {
        int64_t count = 0; /* its tokens, gathered in b */
        for (int64_t i = 0; i < tokens * top; i++)
            if (w->expert[i] == e) memcpy(w->b + count++ * d, w->a + i / top * d, 4 * d);
        if (!count) continue;
        const char *in = (const char *)l->gate_up + e * 2 * f * d * size;
        const char *out = (const char *)l->expert_down + e * d * f * size;
        product(w->b, count, in, 2 * f, d, half, w->gate, 2 * f, w->narrow);
        for (int64_t i = 0; i < count; i++)
            gated(w->gate + i * 2 * f, w->gate + i * 2 * f + f, f, w->up + i * f);
        product(w->up, count, out, d, f, half, w->b, d, w->narrow);
        count = 0;
        for (int64_t i = 0; i < tokens * top; i++)
            if (w->expert[i] == e) {
                float *to = w->c + i / top * d, *from = w->b + count++ * d;
                for (int64_t j = 0; j < d; j += LANES)
                    store(to + j, load(to, j, 0) + load(from, j, 0) * w->share[i]);
            }
    }
}

/* w->b = down(gelu(gate(a)) * up(a)) */
IN void dense(struct work *w, const void *gate, const void *up, const void *down, int64_t tokens,
              int64_t d, int64_t f, int half) {
    product(w->a, tokens, gate, f, d, half, w->gate, f, w->narrow);
    product(w->a, tokens, up, f, d, half, w->up, f, w->narrow);
    gated(w->gate, w->up, tokens * f, w->gate);
    product(w->gate, tokens, down, d, f, half, w->b, d, w->narrow);
}

IN void block(const struct pass *pass, int64_t number, struct work *w, int half) {
    const struct layer *l = pass->layer + number;
    int64_t d = pass->width, size = w->tokens * d;
    float eps = pass->eps, *x = w->x, *end = w->a;
    for (int64_t s = 0; s < size; s += d) normed(x + s, l->before_attention, d, eps, half, w->a + s);
    attention(pass, number, w, half);
    for (int64_t s = 0; s < size; s += d) joined(x + s, w->b + s, l->after_attention, d, eps, half, end);
    routed(pass, l, w, half);
    for (int64_t s = 0; s < size; s += d) normed(x + s, l->before_experts, d, eps, half, w->a + s);
    experts(pass, l, w, half);
    for (int64_t s = 0; s < size; s += d) normed(x + s, l->before_dense, d, eps, half, w->a + s);
    dense(w, l->gate, l->up, l->down, w->tokens, d, pass->hidden, half);
    float scalar = one(l->scalar, 0, half);
    for (int64_t s = 0; s < size; s += d) {
        normed(w->b + s, l->after_dense, d, eps, half, w->b + s);
        joined(w->b + s, w->c + s, l->after_experts, d, eps, half, end);
        joined(x + s, w->b + s, l->after_branches, d, eps, half, end);
        for (int64_t i = s; i < s + d; i += LANES) store(x + i, load(x, i, 0) * scalar);
    }
}

/* x = norm(x + feed_forward(norm(soft))) */
IN void conditioned(const struct pass *pass, struct work *w, int half) {
    int64_t d = pass->width, size = w->tokens * d;
    if (w->soft) {
        for (int64_t s = 0; s < size; s += d)
            normed(w->soft + s, pass->soft_norm, d, pass->eps, half, w->a + s);
        dense(w, pass->soft_gate, pass->soft_up, pass->soft_down, w->tokens, d, pass->hidden, half);
        for (int64_t i = 0; i < size; i += LANES) store(w->x + i, load(w->x, i, 0) + load(w->b, i, 0));
    }
    for (int64_t s = 0; s < size; s += d) normed(w->x + s, 0, d, pass->eps, half, w->x + s);
}

IN void whole_pass(const struct pass *pass, struct work *w, int half) {
    int64_t d = pass->width;
    if (pass->soft_norm) conditioned(pass, w, half);
    for (int64_t l = 0; l < pass->layers; l++) block(pass, l, w, half);
    for (int64_t s = 0; s < w->tokens * d; s += d)
        normed(w->x + s, pass->norm, d, pass->eps, half, w->x + s);
}
OUT void in_float(const struct pass *pass, struct work *w) { whole_pass(pass, w, 0); }
OUT void in_half(const struct pass *pass, struct work *w) { whole_pass(pass, w, 1); }

/* ---- the call ---- */

IN int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

struct sizes {
    int64_t tokens, queries, keys, longest, group, head; /* the largest of all layers and rows */
};
static struct sizes measured(const struct pass *pass) {
    struct sizes z = {0};
    for (int64_t r = 0; r < pass->rows; r++) {
        int64_t here = pass->row[r].tokens;
        z.tokens += here;
        for (int64_t l = 0; l < pass->layers; l++) {
            const struct layer *layer = pass->layer + l;
            z.queries = larger(z.queries, pass->heads * layer->head);
            z.keys = larger(z.keys, layer->key_heads * layer->head);
            z.head = larger(z.head, layer->head);
            z.group = larger(z.group, BLOCK * (pass->heads / layer->key_heads));
            z.longest = larger(z.longest, here + pass->seen[r * pass->layers + l].count);
        }
    }
    return z;
}

struct call {
    const struct pass *pass;
    struct sizes sizes;
    float *shared;         /* keys and values, twice */
    float *scratch;        /* of all threads, `each` floats a thread */
    int64_t most, each;    /* tokens of a thread, at most */
};
/* Lays a thread's scratch out; returns how many floats that takes. */
static int64_t laid_out(const struct call *call, float *at, struct work *w) {
    const struct pass *pass = call->pass;
    const struct sizes *z = &call->sizes;
    int64_t n = call->most, d = pass->width, up = larger(pass->hidden, pass->expert_hidden);
    int64_t gate = larger(larger(pass->hidden, 2 * pass->expert_hidden), pass->experts);
    int64_t widest = larger(larger(d, z->queries), up);
    struct part {
        float **where;
        int64_t size;
    } parts[] = {
        {&w->a, n * d}, {&w->b, n * d}, {&w->c, n * d}, {&w->q, n * z->queries},
        {&w->mixed, n * z->queries}, {&w->gate, n * gate}, {&w->up, n * up},
        {&w->scores, z->group * (z->longest + PANEL)}, {&w->group, z->group * z->head},
        {&w->answer, z->group * z->head}, {&w->panel, z->head * PANEL},
        {&w->values, z->longest * z->head}, {&w->share, n * pass->top},
        {(float **)&w->narrow, n * widest / 2 + 1}, {(float **)&w->expert, 2 * n * pass->top},
    };
    int64_t total = 0;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        *parts[i].where = at + total;
        total += (parts[i].size + 15) / 16 * 16;
    }
    return total;
}
static void member_passes(void *given, struct team *team, int64_t number) {
    const struct call *call = given;
    const struct pass *pass = call->pass;
    int64_t tokens = call->sizes.tokens, side = tokens * call->sizes.keys;
    struct work w = {.team = team, .start = tokens * number / team->members};
    laid_out(call, call->scratch + number * call->each, &w);
    w.tokens = tokens * (number + 1) / team->members - w.start;
    w.x = pass->x + w.start * pass->width;
    w.soft = pass->soft ? pass->soft + w.start * pass->width : 0;
    for (int i = 0; i < 2; i++) w.keys[i] = call->shared + i * side;
    for (int i = 0; i < 2; i++) w.new[i] = call->shared + (i + 2) * side;
    (pass->half ? in_half : in_float)(pass, &w);
}

/* 0, or 1 if there is no memory for scratch. */
int diffusiongemma_trunk(const struct pass *pass) {
    struct call call = {.pass = pass, .sizes = measured(pass)};
    struct work w;
    struct team team = {.task = member_passes, .what = &call};
    int64_t threads = pass->threads > MOST ? MOST : larger(pass->threads, 1);
    int64_t shared = (4 * call.sizes.tokens * call.sizes.keys + 15) / 16 * 16;
    call.most = call.sizes.tokens; /* should a thread be alone; untouched memory costs nothing */
    call.each = laid_out(&call, pass->x, &w);
    char *memory = malloc(4 * (shared + threads * call.each) + 64);
    if (!memory) return 1;
    call.shared = (float *)(memory + (64 - (uintptr_t)memory % 64));
    call.scratch = call.shared + shared;
    run_team(&team, threads);
    free(memory);
    return 0;
}

/* Whether bfloat16 is multiplied as fast as the processor can. */
int diffusiongemma_pairs(void) { return PAIRS; }
