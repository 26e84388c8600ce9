/* Flash attention whose rows have the bits that they have alone, with whatever number of threads.
 *
 * llama.cpp adds in another order where one row looks at 512 cells or more (its threads share them) and from 64 rows on
 * (tiles). Here cells are taken 32 at a time, from the first on, for each query as if it were the only one; queries that
 * look at the same head of keys and values go through them together, so that these are converted once. Cells that a query
 * may not look at add nothing, and 32 of them are passed over.
 *
 * Keys and values in F16 and heads of up to 256 numbers are computed here, on x86-64. All others are left to llama.cpp's
 * reference implementation, which tests of it ask for: each row goes through all cells, one after the other.
 */

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* The first members of ggml_compute_params (ggml-cpu-impl.h). */
typedef struct {
    int thread, threads;
    size_t size;
    void *memory;
    void *pool;
    bool reference;
} Params;

/* ggml_tensor (ggml.h). */
typedef struct Tensor {
    int type;
    void *buffer;
    int64_t ne[4];
    size_t nb[4];
    int op;
    int32_t op_params[16];
    int32_t flags;
    struct Tensor *src[10];
    struct Tensor *view_src;
    size_t view_offs;
    char *data;
} Tensor;

typedef void (*Attention)(Params *, Tensor *);

enum { THEIRS, REFERENCE, OURS }; /* attention.py */

static Attention theirs;
static int how = THEIRS;

enum { CALLED_ATTENTION = 8 }; /* kernels.c */
void eft_note_call(unsigned bit);

void eft_attention_begin(Attention attention) { theirs = attention; }

void eft_attention_use(int implementation) { how = implementation; }

#if defined(__x86_64__) && defined(__linux__)

#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline, target("avx2,fma,f16c")))

enum {
    F32 = 0,
    F16 = 1,       /* ggml_type */
    CELLS = 32,    /* that are taken at a time */
    QUERIES = 16,  /* that go through them together at most */
    WIDEST = 256,  /* numbers of a head at most */
    SLICE = 64,    /* of them, of the values of 32 cells, or … */
    BLOCK = 2048,  /* … numbers of the keys of eight, are converted at a time: the nearest cache has room for them */
    MASKED = 0xFC00 /* minus infinity */
};

/* What is attended to: queries [dk, rows, heads, streams], keys and values [dk or dv, cells, kv_heads, streams]. */
typedef struct {
    const Tensor *q, *k, *v, *mask;
    const float *sinks;
    char *result;
    size_t result_row;
    int64_t dk, dv, rows, heads, kv_heads, streams, cells;
    float scale, softcap, bias;
} Job;

/* One query on its way through the cells. sum: of its weights, in eight lanes; most: the greatest score so far. */
typedef struct {
    const float *vector;
    const uint16_t *mask;
    float slope, most;
    __m256 sum;
    int64_t head, kv_head, row;
    bool looks;
} Query;

INLINE __m256 exponential(__m256 x) {
    /* 2^n · e^r, with |r| ≤ ln 2 / 2; the polynomial is the series of e^r, to the seventh power. */
    const __m256 small = _mm256_set1_ps(-87.0f);
    const __m256 zero = _mm256_cmp_ps(x, small, _CMP_LT_OQ);
    x = _mm256_max_ps(small, x); /* what is no number stays none */
    const __m256 n =
        _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
    __m256 y = _mm256_set1_ps(1.0f / 5040);
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.0f / 720));
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.0f / 120));
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.0f / 24));
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.0f / 6));
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(0.5f));
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.0f));
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.0f));
    const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_andnot_ps(zero, _mm256_mul_ps(y, _mm256_castsi256_ps(power)));
}

INLINE float exponential_of(float x) { return _mm256_cvtss_f32(exponential(_mm256_set1_ps(x))); }

INLINE float sum_of(__m256 x) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

INLINE float greatest_of(__m256 x) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

/* Return the sums of eight vectors. */
INLINE __m256 sums_of(const __m256 x[8]) {
    const __m256 first = _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
    const __m256 last = _mm256_hadd_ps(_mm256_hadd_ps(x[4], x[5]), _mm256_hadd_ps(x[6], x[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(first, last, 0x20), _mm256_permute2f128_ps(first, last, 0x31));
}

/* Convert `width` numbers of each of `all` cells; of those from `count` on they are 0. */
INLINE void convert(const char *cells, size_t stride, int64_t count, int64_t all, int64_t width, float *out) {
    for (int64_t cell = 0; cell < all; cell++, out += width) {
        if (cell >= count) {
            memset(out, 0, width * sizeof(float));
            continue;
        }
        const uint16_t *halves = (const uint16_t *)(cells + cell * stride);
        for (int64_t i = 0; i < width; i += 8)
            _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(halves + i))));
    }
}

INLINE bool may_look(const uint16_t *mask, int64_t count) {
    if (!mask)
        return true;
    if (count < CELLS) {
        for (int64_t cell = 0; cell < count; cell++)
            if (mask[cell] != MASKED)
                return true;
        return false;
    }
    const __m256i masked = _mm256_set1_epi16((short)MASKED);
    const __m256i both = _mm256_and_si256(_mm256_cmpeq_epi16(_mm256_loadu_si256((const __m256i *)mask), masked),
                                          _mm256_cmpeq_epi16(_mm256_loadu_si256((const __m256i *)(mask + 16)), masked));
    return _mm256_movemask_epi8(both) != -1;
}

/* Return the mask of eight cells from `cell` on, of which the last is before `count`. */
INLINE __m256 masked(const Query *query, int64_t cell, int64_t count) {
    uint16_t halves[8];
    for (int i = 0; i < 8; i++)
        halves[i] = cell + i < count ? (query->mask ? query->mask[cell + i] : 0) : MASKED;
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)halves));
}

/* Return eight numbers of a cell, which are converted already or, of `halves`, are not. */
INLINE __m256 eight(const void *cell, int64_t at, bool halves) {
    return halves ? _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)((const uint16_t *)cell + at)))
                  : _mm256_loadu_ps((const float *)cell + at);
}

/* Return the scores of eight cells, which are `stride` bytes apart. */
INLINE __m256 scores(const Job *job, const Query *query, const char *keys, size_t stride, bool halves, int64_t cell,
                     int64_t count) {
    __m256 sums[8];
    for (int i = 0; i < 8; i++)
        sums[i] = _mm256_setzero_ps();
    for (int64_t at = 0; at < job->dk; at += 8) {
        const __m256 numbers = _mm256_loadu_ps(query->vector + at);
        for (int i = 0; i < 8; i++)
            sums[i] = _mm256_fmadd_ps(numbers, eight(keys + i * stride, at, halves), sums[i]);
    }
    __m256 found = _mm256_mul_ps(sums_of(sums), _mm256_set1_ps(job->scale));
    if (job->softcap != 0) {
        float each[8];
        _mm256_storeu_ps(each, found);
        for (int i = 0; i < 8; i++)
            each[i] = job->softcap * tanhf(each[i]);
        found = _mm256_loadu_ps(each);
    }
    const bool whole = query->mask && cell + 8 <= count;
    const __m256 mask = whole ? _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(query->mask + cell)))
                              : masked(query, cell, count);
    return _mm256_add_ps(found, _mm256_mul_ps(mask, _mm256_set1_ps(query->slope)));
}

/* Add up to 64 numbers of the values of 32 cells, which are `stride` bytes apart, with their weights. */
INLINE void add(const float *weights, const char *values, size_t stride, bool halves, int64_t width, float *sums) {
    if (width == SLICE) {
        __m256 parts[SLICE / 8];
        for (int i = 0; i < SLICE / 8; i++)
            parts[i] = _mm256_loadu_ps(sums + 8 * i);
        for (int cell = 0; cell < CELLS; cell++) {
            const __m256 weight = _mm256_broadcast_ss(weights + cell);
            for (int i = 0; i < SLICE / 8; i++)
                parts[i] = _mm256_fmadd_ps(weight, eight(values + cell * stride, 8 * i, halves), parts[i]);
        }
        for (int i = 0; i < SLICE / 8; i++)
            _mm256_storeu_ps(sums + 8 * i, parts[i]);
        return;
    }
    for (int64_t at = 0; at < width; at += 8) {
        __m256 part = _mm256_loadu_ps(sums + at);
        for (int cell = 0; cell < CELLS; cell++)
            part = _mm256_fmadd_ps(_mm256_broadcast_ss(weights + cell), eight(values + cell * stride, at, halves),
                                   part);
        _mm256_storeu_ps(sums + at, part);
    }
}

INLINE void scale(float *sums, int64_t width, float factor) {
    for (int64_t at = 0; at < width; at += 8)
        _mm256_storeu_ps(sums + at, _mm256_mul_ps(_mm256_loadu_ps(sums + at), _mm256_set1_ps(factor)));
}

/* Turn a query's scores of 32 cells into weights; what it has summed up so far is scaled to the greatest score. */
INLINE void weigh(Query *query, float *scores, float *sums, int64_t width) {
    __m256 most = _mm256_set1_ps(query->most);
    for (int part = 0; part < CELLS; part += 8)
        most = _mm256_max_ps(most, _mm256_loadu_ps(scores + part));
    const float greatest = greatest_of(most);
    if (greatest > query->most) {
        const float factor = exponential_of(query->most - greatest);
        query->sum = _mm256_mul_ps(query->sum, _mm256_set1_ps(factor));
        scale(sums, width, factor);
        query->most = greatest;
    }
    for (int part = 0; part < CELLS; part += 8) {
        const __m256 score = _mm256_loadu_ps(scores + part);
        const __m256 weight = exponential(_mm256_sub_ps(score, _mm256_set1_ps(query->most)));
        query->sum = _mm256_add_ps(query->sum, weight);
        _mm256_storeu_ps(scores + part, weight);
    }
}

static float slope_of(const Job *job, int64_t head) {
    if (job->bias <= 0)
        return 1.0f;
    const int64_t below = INT64_C(1) << (int)floor(log2(job->heads));
    return head < below ? powf(powf(2.0f, -job->bias / below), head + 1)
                        : powf(powf(2.0f, -job->bias / 2.0f / below), 2 * (head - below) + 1);
}

/* Take queries of one head of keys through 32 cells, of which those from `end` on are not there. */
INLINE void take(const Job *job, Query *queries, int64_t count, const char *keys, const char *values, int64_t cell,
                 int64_t end, float *weights, float *results) {
    const size_t key_stride = job->k->nb[1], value_stride = job->v->nb[1];
    const bool direct = count == 1 && end - cell == CELLS; /* what serves once is not converted beforehand */
    const int64_t dv = job->dv;
    float block[BLOCK];

    for (int part = 0; part < CELLS; part += 8) {
        const char *eight_keys = keys + (cell + part) * key_stride;
        if (!direct)
            convert(eight_keys, key_stride, end - cell - part, 8, job->dk, block);
        for (int64_t i = 0; i < count; i++) {
            if (!queries[i].looks)
                continue;
            const __m256 found =
                direct ? scores(job, &queries[i], eight_keys, key_stride, true, cell + part, end)
                       : scores(job, &queries[i], (const char *)block, job->dk * sizeof(float), false, cell + part,
                                end);
            _mm256_storeu_ps(weights + i * CELLS + part, found);
        }
    }
    for (int64_t i = 0; i < count; i++)
        if (queries[i].looks)
            weigh(&queries[i], weights + i * CELLS, results + i * dv, dv);
    for (int64_t at = 0; at < dv; at += SLICE) {
        const int64_t width = at + SLICE < dv ? SLICE : dv - at;
        const char *slice = values + cell * value_stride + at * sizeof(uint16_t);
        if (direct) {
            add(weights, slice, value_stride, true, width, results + at);
            continue;
        }
        convert(slice, value_stride, end - cell, CELLS, width, block);
        for (int64_t i = 0; i < count; i++)
            if (queries[i].looks)
                add(weights + i * CELLS, (const char *)block, width * sizeof(float), false, width,
                    results + i * dv + at);
    }
}

/* Compute `count` queries from `first` on: those of one head of keys stand together, row by row. All go through the cells
 * together, as what one cell holds for several heads is in one place. */
__attribute__((target("avx2,fma,f16c"))) static void attend(const Job *job, int64_t stream, int64_t first,
                                                           int64_t count) {
    const Tensor *q = job->q, *k = job->k, *v = job->v, *mask = job->mask;
    const int64_t dv = job->dv, group = job->heads / job->kv_heads, together = group * job->rows;
    const int64_t kv_stream = stream / (job->streams / k->ne[3]);
    float results[QUERIES * WIDEST], weights[QUERIES * CELLS];
    Query queries[QUERIES];

    memset(results, 0, count * dv * sizeof(float));
    for (int64_t i = 0; i < count; i++) {
        Query *query = &queries[i];
        const int64_t place = (first + i) % together;
        query->kv_head = (first + i) / together;
        query->row = place / group;
        query->head = query->kv_head * group + place % group;
        query->most = -INFINITY;
        query->sum = _mm256_setzero_ps();
        query->slope = slope_of(job, query->head);
        query->mask = mask ? (const uint16_t *)(mask->data + query->row * mask->nb[1] +
                                                query->head % mask->ne[2] * mask->nb[2] +
                                                stream % mask->ne[3] * mask->nb[3])
                           : NULL;
        query->vector = (const float *)(q->data + query->row * q->nb[1] + query->head * q->nb[2] + stream * q->nb[3]);
    }
    for (int64_t cell = 0; cell < job->cells; cell += CELLS) {
        const int64_t end = cell + CELLS < job->cells ? cell + CELLS : job->cells;
        for (int64_t from = 0, to; from < count; from = to) {
            const int64_t kv_head = queries[from].kv_head;
            bool any = false;
            for (to = from; to < count && queries[to].kv_head == kv_head; to++)
                any |= queries[to].looks = may_look(queries[to].mask ? queries[to].mask + cell : NULL, end - cell);
            if (any)
                take(job, queries + from, to - from, k->data + kv_head * k->nb[2] + kv_stream * k->nb[3],
                     v->data + kv_head * v->nb[2] + kv_stream * v->nb[3], cell, end, weights, results + from * dv);
        }
    }
    for (int64_t i = 0; i < count; i++) {
        const Query *query = &queries[i];
        float sum = sum_of(query->sum), factor = 1.0f;
        if (job->sinks) {
            const float sink = job->sinks[query->head];
            const float most = sink > query->most ? sink : query->most;
            factor = exponential_of(query->most - most);
            sum = sum * factor + exponential_of(sink - most);
        }
        scale(results + i * dv, dv, sum == 0 ? 0.0f : factor / sum);
        const int64_t place = stream * job->heads * job->rows + query->row * job->heads + query->head;
        memcpy(job->result + place * job->result_row, results + i * dv, dv * sizeof(float));
    }
}

static bool suits(const Tensor *result) {
    const Tensor *q = result->src[0], *k = result->src[1], *v = result->src[2], *mask = result->src[3];
    return q->type == F32 && k->type == F16 && v->type == F16 && result->type == F32 && (!mask || mask->type == F16) &&
           q->nb[0] == 4 && k->nb[0] == 2 && v->nb[0] == 2 && (!mask || mask->nb[0] == 2) &&
           q->ne[0] == k->ne[0] && k->ne[0] % 8 == 0 && k->ne[0] <= WIDEST && v->ne[0] % 8 == 0 &&
           v->ne[0] <= WIDEST && k->ne[1] == v->ne[1] && k->ne[2] == v->ne[2] && k->ne[3] == v->ne[3] &&
           q->ne[2] % k->ne[2] == 0 && q->ne[3] % k->ne[3] == 0;
}

static void ours(const Params *params, Tensor *result) {
    const Tensor *q = result->src[0], *k = result->src[1], *v = result->src[2];
    Job job = {.q = q, .k = k, .v = v, .mask = result->src[3], .result = result->data, .result_row = result->nb[1],
               .sinks = result->src[4] ? (const float *)result->src[4]->data : NULL,
               .dk = k->ne[0], .dv = v->ne[0], .rows = q->ne[1], .heads = q->ne[2], .streams = q->ne[3],
               .kv_heads = k->ne[2], .cells = k->ne[1]};
    memcpy(&job.scale, result->op_params, 4);
    memcpy(&job.bias, result->op_params + 1, 4);
    memcpy(&job.softcap, result->op_params + 2, 4);
    if (job.softcap != 0)
        job.scale /= job.softcap;
    const int64_t all = job.heads * job.rows; /* of one stream */
    /* So few at once that all threads get some. */
    int64_t some = (all * job.streams + params->threads - 1) / params->threads;
    some = some < QUERIES ? some : QUERIES;
    int64_t part = 0;
    for (int64_t stream = 0; stream < job.streams; stream++)
        for (int64_t first = 0; first < all; first += some)
            if (part++ % params->threads == params->thread)
                attend(&job, stream, first, first + some < all ? some : all - first);
}

#else

static bool suits(const Tensor *result) { return (void)result, false; }
static void ours(const Params *params, Tensor *result) { (void)params, (void)result; }

#endif

void ggml_compute_forward_flash_attn_ext(Params *params, Tensor *result) {
    eft_note_call(CALLED_ATTENTION);
    if (how == OURS && suits(result)) {
        ours(params, result);
        return;
    }
    /* Not a copy with another flag: a later llama.cpp may have more members behind it. Each thread has its own. */
    const bool before = params->reference;
    params->reference |= how != THEIRS;
    theirs(params, result);
    params->reference = before;
}
