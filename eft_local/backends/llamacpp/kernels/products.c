/* Matrix products whose results do not depend on how many rows are evaluated at once, on x86-64 CPUs.
 *
 * llama.cpp computes one row with `ggml_vec_dot_*`, and several with kernels that add in another order: `llamafile_sgemm`
 * from two rows on (F16, BF16: attention, and weights of these types), and a tiled kernel from eight rows on (K-quants,
 * IQ4_XS). A token's logits then depend on how a prompt was split, on drafts, and on what else is being written. The
 * functions here have the names of those kernels:
 *
 * - F16, BF16: several rows are llama.cpp's, and one row is computed here in the same order, a vector of sums for each
 *   column, of which eight are in registers.
 * - K-quants, IQ4_XS: one row is llama.cpp's, and several are computed here in the same order; weights are unpacked once for
 *   up to 32 rows, and are in registers for four at a time.
 * - Types whose kernels of llama.cpp add in the same order anyway are left to them, all others are computed row by row.
 *
 * "Rows" are the rows of values, one for each token; "columns" are the rows of the weight matrix, as they become columns of
 * the result. products.py puts the functions into place, and tries them before it lets them answer.
 */

#if defined(__x86_64__) && defined(__linux__)

#include <immintrin.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define AVX2 __attribute__((target("avx2,fma,f16c")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx2,fma,f16c")))
#define INLINE static inline __attribute__((always_inline)) AVX2
#define UNROLL _Pragma("GCC unroll 8")

/* ggml_type */
enum { F32 = 0, F16 = 1, Q2_K = 10, Q3_K = 11, Q4_K, Q5_K, Q6_K, Q8_K, IQ4_XS = 23, BF16 = 30, TYPES = 64 };

/* The first members of ggml_compute_params. */
typedef struct {
    int ith, nth;
} Thread;

typedef bool (*Sgemm)(const Thread *, int64_t, int64_t, int64_t, const void *, int64_t, const void *, int64_t, void *,
                      int64_t, int, int, int);
typedef bool (*Tiled)(const void *, void *);
typedef bool (*TiledExpert)(const void *, void *, int64_t, int64_t, const int32_t *, char *);

/* How products of a type of weights are computed: row by row; one row by llama.cpp and several here; as llama.cpp does; one
 * row here, with sums in so many lanes, and several by llama.cpp. */
enum { ROW_BY_ROW, SEVERAL_HERE, THEIRS, ONE_HERE_8, ONE_HERE_16 };
static unsigned char how[TYPES];
static bool tiled_by_them;
static Sgemm their_sgemm;
static Tiled their_tiled;
static TiledExpert their_tiled_expert;

enum { CALLED_PRODUCTS = 4 }; /* kernels.c */
void eft_note_call(unsigned bit);

void eft_products_begin(Sgemm sgemm, Tiled tiled, TiledExpert tiled_expert) {
    their_sgemm = sgemm;
    their_tiled = tiled;
    their_tiled_expert = tiled_expert;
}

/* tiled: whether llama.cpp's tiled kernels may take products before anybody else. */
void eft_products_use(const unsigned char of_types[TYPES], bool tiled) {
    memcpy(how, of_types, TYPES);
    tiled_by_them = tiled;
}

int eft_products_sixteen_lanes(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
}

/* ----------------------------------------------------------------------------------------------------- F16, BF16 */

enum {
    WIDE = 8,     /* columns in registers */
    SHORT = 1024, /* numbers of a column up to which the CPU does not foresee eight columns side by side */
};

INLINE __m256 eight(int type, const uint16_t *numbers) {
    __m128i halves = _mm_loadu_si128((const __m128i *)numbers);
    if (type == F16)
        return _mm256_cvtph_ps(halves);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

static inline __attribute__((always_inline)) AVX512 __m512 sixteen(int type, const uint16_t *numbers) {
    __m256i halves = _mm256_loadu_si256((const __m256i *)numbers);
    if (type == F16)
        return _mm512_cvtph_ps(halves);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

INLINE float total(__m256 lanes) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

/* Read memory in order, which the CPU foresees. */
INLINE void touch(const char *bytes, size_t count) {
    for (size_t at = 0; at < count; at += 64) {
        int touched;
        __asm__ volatile("movl %1, %0" : "=r"(touched) : "m"(*(const int *)(bytes + at)));
    }
}

/* c[x] for columns from <= x < to. Eight variables, not an array: gcc keeps that in memory. */
#define ONE_ROW(type, lanes, features, vector, load, fmadd, zero, sum)                                                 \
    features static void one_row_of_##type##_##lanes(size_t from, size_t to, size_t k, const uint16_t *columns,       \
                                                     size_t stride, const uint16_t *row, float *c) {                   \
        size_t x = from;                                                                                               \
        for (; x + WIDE <= to; x += WIDE) {                                                                            \
            const uint16_t *column = columns + x * stride;                                                             \
            const char *next = stride == k && k <= SHORT ? (const char *)(column + WIDE * k) : NULL;                   \
            if (next)                                                                                                  \
                touch((const char *)column, WIDE * 2 * k);                                                             \
            vector s0 = zero, s1 = zero, s2 = zero, s3 = zero, s4 = zero, s5 = zero, s6 = zero, s7 = zero;             \
            for (size_t i = 0; i < k; i += lanes) {                                                                    \
                const vector values = load(type, row + i);                                                             \
                if (next)                                                                                              \
                    for (int line = 0; line < lanes / 4; line++)                                                       \
                        _mm_prefetch(next + WIDE * 2 * i + 64 * line, _MM_HINT_T0);                                    \
                s0 = fmadd(load(type, column + i), values, s0);                                                        \
                s1 = fmadd(load(type, column + stride + i), values, s1);                                               \
                s2 = fmadd(load(type, column + 2 * stride + i), values, s2);                                           \
                s3 = fmadd(load(type, column + 3 * stride + i), values, s3);                                           \
                s4 = fmadd(load(type, column + 4 * stride + i), values, s4);                                           \
                s5 = fmadd(load(type, column + 5 * stride + i), values, s5);                                           \
                s6 = fmadd(load(type, column + 6 * stride + i), values, s6);                                           \
                s7 = fmadd(load(type, column + 7 * stride + i), values, s7);                                           \
            }                                                                                                          \
            c[x] = sum(s0), c[x + 1] = sum(s1), c[x + 2] = sum(s2), c[x + 3] = sum(s3);                                \
            c[x + 4] = sum(s4), c[x + 5] = sum(s5), c[x + 6] = sum(s6), c[x + 7] = sum(s7);                            \
        }                                                                                                              \
        for (; x < to; x++) {                                                                                          \
            vector s = zero;                                                                                           \
            for (size_t i = 0; i < k; i += lanes)                                                                      \
                s = fmadd(load(type, columns + x * stride + i), load(type, row + i), s);                               \
            c[x] = sum(s);                                                                                             \
        }                                                                                                              \
    }
ONE_ROW(F16, 8, AVX2, __m256, eight, _mm256_fmadd_ps, _mm256_setzero_ps(), total)
ONE_ROW(BF16, 8, AVX2, __m256, eight, _mm256_fmadd_ps, _mm256_setzero_ps(), total)
ONE_ROW(F16, 16, AVX512, __m512, sixteen, _mm512_fmadd_ps, _mm512_setzero_ps(), _mm512_reduce_add_ps)
ONE_ROW(BF16, 16, AVX512, __m512, sixteen, _mm512_fmadd_ps, _mm512_setzero_ps(), _mm512_reduce_add_ps)

/* ------------------------------------------------------------------------------------------------------- K-quants */

enum {
    SUPER = 256,  /* weights that share a scale of scales */
    PARTS = 8,    /* vectors that they fill */
    TILE = 4,     /* columns whose weights are unpacked at once */
    BATCH = 32,   /* rows that they are unpacked for */
    TOGETHER = 4, /* rows in registers */
};

typedef struct {
    float scale;
    int8_t bytes[SUPER];
    int16_t sums[SUPER / 16];
} Values; /* block_q8_K */

typedef struct {
    __m256i bytes[PARTS];  /* without sign */
    __m256i signs[PARTS];  /* Q3_K, IQ4_XS: the weights themselves */
    __m256i scales[PARTS]; /* 16 bits for each two bytes */
    __m256i least;         /* Q2_K, Q4_K, Q5_K: minima, Q6_K: scales; 16 bits for each of a block's sums */
    float scale, scale_of_least;
} Unpacked;

INLINE float half(const void *number) {
    uint16_t bits;
    memcpy(&bits, number, sizeof bits);
    return _cvtsh_ss(bits);
}

INLINE __m256i bytes_at(const uint8_t *bytes) {
    return _mm256_loadu_si256((const __m256i *)bytes);
}

INLINE __m256i low_bits(__m256i bytes, int shift, int mask) {
    return _mm256_and_si256(_mm256_srli_epi16(bytes, shift), _mm256_set1_epi8((char)mask));
}

/* Sixteen scales of 16 weights each: two for every part. */
INLINE void spread_16(__m128i scales, __m256i spread[PARTS]) {
    UNROLL
    for (int p = 0; p < PARTS; p++) {
        const __m128i pick = _mm_setr_epi8(2 * p, 2 * p, 2 * p, 2 * p, 2 * p, 2 * p, 2 * p, 2 * p, 2 * p + 1, 2 * p + 1,
                                           2 * p + 1, 2 * p + 1, 2 * p + 1, 2 * p + 1, 2 * p + 1, 2 * p + 1);
        spread[p] = _mm256_cvtepi8_epi16(_mm_shuffle_epi8(scales, pick));
    }
}

/* Q4_K and Q5_K: eight scales and eight minima of 6 bits each. */
INLINE void unpack_scales_and_minima(const uint8_t packed[12], Unpacked *u) {
    uint32_t words[3];
    memcpy(words, packed, sizeof words);
    const uint32_t scales[2] = {words[0] & 0x3F3F3F3F, (words[2] & 0x0F0F0F0F) | (words[0] >> 2 & 0x30303030)};
    const uint32_t least[2] = {words[1] & 0x3F3F3F3F, (words[2] >> 4 & 0x0F0F0F0F) | (words[1] >> 2 & 0x30303030)};
    UNROLL
    for (int p = 0; p < PARTS; p++)
        u->scales[p] = _mm256_set1_epi16((short)(scales[p / 4] >> 8 * (p % 4) & 63));
    u->least = _mm256_castsi128_si256(_mm_cvtepu8_epi16(_mm_set_epi32(0, 0, (int)least[1], (int)least[0])));
}

INLINE void unpack_signs(const __m256i signed_bytes[PARTS], Unpacked *u) {
    UNROLL
    for (int p = 0; p < PARTS; p++) {
        u->signs[p] = signed_bytes[p];
        u->bytes[p] = _mm256_sign_epi8(signed_bytes[p], signed_bytes[p]);
    }
}

INLINE void unpack(int type, const uint8_t *block, Unpacked *u) {
    if (type == Q4_K || type == Q5_K) { /* scale, scale of minima, 12 bytes, (32 of fifth bits), 128 of nibbles */
        u->scale = half(block);
        u->scale_of_least = half(block + 2);
        unpack_scales_and_minima(block + 4, u);
        const uint8_t *nibbles = block + (type == Q4_K ? 16 : 48);
        UNROLL
        for (int p = 0; p < PARTS; p += 2) {
            __m256i both = bytes_at(nibbles + 16 * p);
            u->bytes[p] = low_bits(both, 0, 15);
            u->bytes[p + 1] = low_bits(both, 4, 15);
        }
        if (type == Q5_K) {
            __m256i fifth = bytes_at(block + 16);
            UNROLL
            for (int p = 0; p < PARTS; p++) {
                __m256i bit = _mm256_slli_epi16(low_bits(fifth, p, 1), 4);
                u->bytes[p] = _mm256_or_si256(u->bytes[p], bit);
            }
        }
    } else if (type == Q6_K) { /* 128 of nibbles, 64 of upper bits, 16 scales, scale */
        const __m128i scales = _mm_loadu_si128((const __m128i *)(block + 192));
        u->scale = half(block + 208);
        u->least = _mm256_cvtepi8_epi16(scales);
        spread_16(scales, u->scales);
        UNROLL
        for (int p = 0; p < PARTS; p++) { /* of 128 weights: low nibbles of 32, of the next 32, high nibbles of both */
            __m256i nibbles = low_bits(bytes_at(block + 64 * (p / 4) + 32 * (p % 2)), p % 4 / 2 * 4, 15);
            __m256i upper = low_bits(bytes_at(block + 128 + 32 * (p / 4)), 2 * (p % 4), 3);
            u->bytes[p] = _mm256_or_si256(nibbles, _mm256_slli_epi16(upper, 4));
        }
    } else if (type == Q2_K) { /* 16 scales and minima, 64 of weights, scale, scale of minima */
        const __m128i both = _mm_loadu_si128((const __m128i *)block), four = _mm_set1_epi8(15);
        u->scale = half(block + 80);
        u->scale_of_least = half(block + 82);
        u->least = _mm256_cvtepi8_epi16(_mm_and_si128(_mm_srli_epi16(both, 4), four));
        spread_16(_mm_and_si128(both, four), u->scales);
        UNROLL
        for (int p = 0; p < PARTS; p++)
            u->bytes[p] = low_bits(bytes_at(block + 16 + 32 * (p / 4)), 2 * (p % 4), 3);
    } else if (type == Q3_K) { /* 32 of upper bits, 64 of lower ones, 12 of scales, scale */
        uint32_t words[3];
        memcpy(words, block + 96, sizeof words);
        uint32_t scales[4];
        UNROLL
        for (int i = 0; i < 4; i++)
            scales[i] = (words[i % 2] >> i / 2 * 4 & 0x0F0F0F0F) | (words[2] >> 2 * i & 0x03030303) << 4;
        __m128i all = _mm_set_epi32((int)scales[3], (int)scales[2], (int)scales[1], (int)scales[0]);
        u->scale = half(block + 108);
        spread_16(_mm_sub_epi8(all, _mm_set1_epi8(32)), u->scales);
        __m256i weights[PARTS];
        UNROLL
        for (int p = 0; p < PARTS; p++) {
            __m256i lower = low_bits(bytes_at(block + 32 + 32 * (p / 4)), 2 * (p % 4), 3);
            __m256i upper = _mm256_slli_epi16(low_bits(bytes_at(block), p, 1), 2);
            weights[p] = _mm256_sub_epi8(_mm256_or_si256(lower, upper), _mm256_set1_epi8(4));
        }
        unpack_signs(weights, u);
    } else { /* IQ4_XS: scale, 2 bytes and 4 bytes of scales, 128 of nibbles */
        const __m256i levels = _mm256_setr_epi8(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113, -127, -104,
                                                -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113);
        uint16_t upper;
        memcpy(&upper, block + 2, sizeof upper);
        u->scale = half(block);
        __m256i weights[PARTS];
        UNROLL
        for (int p = 0; p < PARTS; p++) {
            int scale = (block[4 + p / 2] >> 4 * (p % 2) & 15) | (upper >> 2 * p & 3) << 4;
            u->scales[p] = _mm256_set1_epi16((short)(scale - 32));
            __m128i nibbles = _mm_loadu_si128((const __m128i *)(block + 8 + 16 * p));
            __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(nibbles), _mm_srli_epi16(nibbles, 4), 1);
            weights[p] = _mm256_shuffle_epi8(levels, _mm256_and_si256(both, _mm256_set1_epi8(15)));
        }
        unpack_signs(weights, u);
    }
}

/* What a row has summed up so far: eight lanes, and what its minima take off. */
typedef struct {
    __m256 lanes;
    __m128 least; /* Q4_K: four lanes, Q5_K: the first of them */
} Sum;

INLINE int sum_of_four(__m128i lanes) {
    lanes = _mm_hadd_epi32(lanes, lanes);
    return _mm_cvtsi128_si32(_mm_hadd_epi32(lanes, lanes));
}

/* Add a block's products with one row, of which the whole numbers are known, as ggml_vec_dot_* does. */
INLINE void add_block(int type, const Unpacked *u, const Values *row, __m256i whole, Sum *sum) {
    const __m256i sums = _mm256_loadu_si256((const __m256i *)row->sums);
    const float scale = row->scale * u->scale;
    if (type == Q4_K || type == Q5_K) {
        const float least = -row->scale * u->scale_of_least;
        __m128i pairs = _mm_hadd_epi16(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
        __m128i product = _mm_madd_epi16(_mm256_castsi256_si128(u->least), pairs);
        if (type == Q4_K)
            sum->least = _mm_fmadd_ps(_mm_set1_ps(least), _mm_cvtepi32_ps(product), sum->least);
        else
            sum->least = _mm_fmadd_ss(_mm_set_ss(least), _mm_set_ss((float)sum_of_four(product)), sum->least);
    }
    if (type == Q2_K) {
        __m256 product = _mm256_cvtepi32_ps(_mm256_madd_epi16(u->least, sums));
        sum->lanes = _mm256_fmadd_ps(_mm256_set1_ps(-row->scale * u->scale_of_least), product, sum->lanes);
    }
    if (type == Q6_K)
        whole = _mm256_sub_epi32(whole, _mm256_slli_epi32(_mm256_madd_epi16(sums, u->least), 5));
    sum->lanes = _mm256_fmadd_ps(_mm256_set1_ps(scale), _mm256_cvtepi32_ps(whole), sum->lanes);
}

INLINE float total_of(int type, const Sum *sum) {
    const float lanes = total(sum->lanes);
    if (type == Q4_K) {
        __m128 least = _mm_add_ps(sum->least, _mm_movehl_ps(sum->least, sum->least));
        return lanes + _mm_cvtss_f32(_mm_add_ss(least, _mm_movehdup_ps(least)));
    }
    return type == Q5_K ? lanes + _mm_cvtss_f32(sum->least) : lanes;
}

/* Multiply one block of one column by `high` rows. */
INLINE void block_rows(int type, int high, const Unpacked *u, const Values *rows, size_t stride, Sum *sums) {
    __m256i whole[TOGETHER];
    UNROLL
    for (int y = 0; y < high; y++)
        whole[y] = _mm256_setzero_si256();
    UNROLL
    for (int p = 0; p < PARTS; p++) {
        const __m256i bytes = u->bytes[p], scales = u->scales[p];
        UNROLL
        for (int y = 0; y < high; y++) {
            __m256i values = _mm256_loadu_si256((const __m256i *)(rows[y * stride].bytes + 32 * p));
            if (type == Q3_K || type == IQ4_XS)
                values = _mm256_sign_epi8(values, u->signs[p]);
            whole[y] = _mm256_add_epi32(whole[y], _mm256_madd_epi16(scales, _mm256_maddubs_epi16(bytes, values)));
        }
    }
    UNROLL
    for (int y = 0; y < high; y++)
        add_block(type, u, rows + y * stride, whole[y], sums + y);
}

/* c[y * ldc + x] for columns from <= x < to and all n rows of so many blocks. */
INLINE void quants(int type, size_t from, size_t to, size_t n, size_t blocks, size_t block_bytes, const uint8_t *columns,
                   size_t column_bytes, const Values *rows, size_t stride, float *c, size_t ldc) {
    Unpacked unpacked[TILE];
    Sum sums[TILE][BATCH];
    for (size_t y = 0; y < n; y += BATCH) {
        const size_t high = n - y < BATCH ? n - y : BATCH;
        for (size_t x = from; x < to; x += TILE) {
            const size_t wide = to - x < TILE ? to - x : TILE;
            memset(sums, 0, sizeof sums);
            for (size_t b = 0; b < blocks; b++) {
                for (size_t i = 0; i < wide; i++)
                    unpack(type, columns + (x + i) * column_bytes + b * block_bytes, unpacked + i);
                size_t j = 0;
                for (; j + TOGETHER <= high; j += TOGETHER)
                    for (size_t i = 0; i < wide; i++)
                        block_rows(type, TOGETHER, unpacked + i, rows + (y + j) * stride + b, stride, sums[i] + j);
                for (size_t i = 0; i < wide; i++) {
                    const Values *rest = rows + (y + j) * stride + b;
                    if (high - j == 3)
                        block_rows(type, 3, unpacked + i, rest, stride, sums[i] + j);
                    else if (high - j == 2)
                        block_rows(type, 2, unpacked + i, rest, stride, sums[i] + j);
                    else if (high - j == 1)
                        block_rows(type, 1, unpacked + i, rest, stride, sums[i] + j);
                }
            }
            for (size_t i = 0; i < wide; i++)
                for (size_t j = 0; j < high; j++)
                    c[(y + j) * ldc + x + i] = total_of(type, &sums[i][j]);
        }
    }
}

#define QUANTS_OF(type, block_bytes)                                                                               \
    AVX2 static void quants_of_##type(size_t from, size_t to, size_t n, size_t blocks, const char *columns,        \
                                      size_t stride_of_columns, const void *rows, size_t stride, float *c, size_t ldc) { \
        quants(type, from, to, n, blocks, block_bytes, (const uint8_t *)columns, stride_of_columns * block_bytes,  \
               (const Values *)rows, stride, c, ldc);                                                              \
    }
QUANTS_OF(Q2_K, 84)
QUANTS_OF(Q3_K, 110)
QUANTS_OF(Q4_K, 144)
QUANTS_OF(Q5_K, 176)
QUANTS_OF(Q6_K, 210)
QUANTS_OF(IQ4_XS, 136)

/* --------------------------------------------------------------------------------------------------------- entries */

/* Compute this thread's share of c[j * ldc + i] = column i of A times row j of B, for i < m, j < n; false: not done, and
 * llama.cpp computes it row by row. k, lda, ldb count blocks of the type. */
bool llamafile_sgemm(const Thread *thread, int64_t m, int64_t n, int64_t k, const void *A, int64_t lda, const void *B,
                     int64_t ldb, void *C, int64_t ldc, int a_type, int b_type, int c_type) {
    eft_note_call(CALLED_PRODUCTS);
    if (c_type != F32 || a_type < 0 || a_type >= TYPES)
        return false;
    const int by = how[a_type];
    if (by == ROW_BY_ROW)
        return false;
    if (by == THEIRS || (n > 1 && by != SEVERAL_HERE))
        return their_sgemm(thread, m, n, k, A, lda, B, ldb, C, ldc, a_type, b_type, c_type);
    const size_t share = ((size_t)m + 8 * thread->nth - 1) / (8 * thread->nth) * 8;
    const size_t from = share * thread->ith, to = from + share < (size_t)m ? from + share : (size_t)m;
    if (by != SEVERAL_HERE) {
        /* What llama.cpp's kernel refuses with several rows is computed row by row with one, too. */
        if (b_type != a_type || m % 4 || k % (by == ONE_HERE_16 ? 16 : 8))
            return false;
        if (from >= to)
            return true;
        if (a_type == F16)
            (by == ONE_HERE_16 ? one_row_of_F16_16 : one_row_of_F16_8)(from, to, k, A, lda, B, C);
        else
            (by == ONE_HERE_16 ? one_row_of_BF16_16 : one_row_of_BF16_8)(from, to, k, A, lda, B, C);
        return true;
    }
    if (n < 2 || b_type != Q8_K)
        return false;
    if (from >= to)
        return true;
    switch (a_type) {
#define CASE(type)                                                                                                     \
    case type:                                                                                                         \
        quants_of_##type(from, to, n, k, A, lda, B, ldb, C, ldc);                                                      \
        return true;
        CASE(Q2_K)
        CASE(Q3_K)
        CASE(Q4_K)
        CASE(Q5_K)
        CASE(Q6_K)
        CASE(IQ4_XS)
    }
    return false;
}

bool ggml_compute_forward_mul_mat_tiled(const void *params, void *product) {
    eft_note_call(CALLED_PRODUCTS);
    return tiled_by_them && their_tiled(params, product);
}

bool ggml_compute_forward_mul_mat_id_tiled(const void *params, void *product, int64_t expert, int64_t rows,
                                           const int32_t *places, char *scratch) {
    eft_note_call(CALLED_PRODUCTS);
    return tiled_by_them && their_tiled_expert(params, product, expert, rows, places, scratch);
}

#else

typedef int no_products_to_compile_here;

#endif
