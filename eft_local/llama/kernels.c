/* Matrix products of a few rows with Q4_0 weights on x86-64 CPUs: what checking a draft, a batch and a prompt cost.
 *
 * llama.cpp keeps Q4_0 weights of eight columns interleaved (block_q4_0x8 in ggml/src/ggml-cpu/repack.h), and calls
 * ggml_gemm_q4_0_8x8_q8_0 for every four rows or more. Its AVX2 kernel spends most of its instructions on signs and
 * shuffles, and unpacks the weights anew for every four rows. This one gives the same bits in less than half the time:
 *
 * - A nibble is taken as 0 ... 15 instead of -8 ... 7, so that one instruction multiplies it by a signed byte; eight
 *   times the sum of a row's bytes, known beforehand, is what that adds too much.
 * - Products are added in 16 bits. With w a nibble, a a byte and -4 * sum(a) in each half of a column to begin with, the
 *   half's sum is that of (w - 4) * a over its own 16 bytes and of -4 * a over the other 16: at most
 *   16 * 11 * 127 + 16 * 4 * 127 = 30480 < 2^15. What overflows on the way wraps back.
 * - Weights are unpacked once for up to sixteen rows.
 *
 * Floats are made of the integer sums as llama.cpp makes them, in the same order, so that results are equal to the bit.
 *
 * The function has llama.cpp's own name: loaded before it and for all to see, it is the one that llama.cpp's library
 * finds. kernels.py does that, and compares the two before it lets this one answer.
 */

#if defined(__x86_64__) && defined(__linux__)

#include <immintrin.h>
#include <limits.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define AVX2 __attribute__((target("avx2,fma,f16c")))
#define INLINE static inline __attribute__((always_inline)) AVX2

enum {
    BLOCK = 32,   /* weights that share a scale */
    COLUMNS = 8,  /* of weights, interleaved */
    GROUP = 4,    /* rows, interleaved */
    GROUPS = 4,   /* at most so many at once */
    SLAB = 128,   /* blocks after which the next columns are taken: of eight rows they fill the first cache */
};

typedef struct {
    uint16_t scale[COLUMNS]; /* F16 */
    uint8_t nibbles[COLUMNS * BLOCK / 2];
} Weights; /* block_q4_0x8: bytes 8i ... 8i + 7 are of column i % 8, two weights each, 16 apart; nibbles are signed */

typedef struct {
    uint16_t scale[GROUP]; /* F16 */
    int8_t bytes[GROUP * BLOCK];
} Rows; /* block_q8_0x4: bytes 8i ... 8i + 7 are of row i % 4 */

typedef struct {
    float scale[GROUP];
    uint32_t start[GROUP]; /* twice the 16 bits of -4 * the sum of a row's bytes */
} Prepared;

typedef void (*Gemm)(int n, float *s, size_t bs, const void *weights, const void *rows, int nr, int nc);

/* llama.cpp's own function, asked from so many rows on. */
static Gemm original;
static int original_from = INT_MAX;

void eft_kernels_use(Gemm llama_cpps, int from) {
    original = llama_cpps;
    original_from = from;
}

int eft_kernels_supported(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

/* Whether llama.cpp, compiled for this CPU, has instructions that this file does without. */
int eft_kernels_vnni(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw");
}

INLINE __m256i load(const void *bytes) {
    return _mm256_loadu_si256((const __m256i *)bytes);
}

INLINE __m256i repeat(const void *four_bytes) {
    int32_t value;
    memcpy(&value, four_bytes, sizeof value);
    return _mm256_set1_epi32(value);
}

AVX2 static void prepare(const Rows *rows, int blocks, Prepared *prepared) {
    for (int b = 0; b < blocks; b++) {
        __m256i sums = _mm256_setzero_si256(); /* of row r in lanes 4r ... 4r + 3 */
        for (int part = 0; part < 4; part++)
            sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(_mm256_set1_epi8(1), load(rows[b].bytes + 32 * part)));
        __m256i halves = _mm256_madd_epi16(sums, _mm256_set1_epi16(-4));
        __m256i doubled = _mm256_add_epi32(halves, _mm256_shuffle_epi32(halves, 0xB1));
        __m256i ordered = _mm256_permutevar8x32_epi32(doubled, _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6));
        __m128i low = _mm_and_si128(_mm256_castsi256_si128(ordered), _mm_set1_epi32(0xFFFF));
        _mm_storeu_si128((__m128i *)prepared[b].start, _mm_or_si128(low, _mm_slli_epi32(low, 16)));
        _mm_storeu_ps(prepared[b].scale, _mm_cvtph_ps(_mm_loadl_epi64((const __m128i *)rows[b].scale)));
    }
}

/* Unpack a block: weights[i] holds weights 4i ... 4i + 3 of columns 0 4 1 5 2 6 3 7. */
INLINE void unpack(const Weights *block, __m256i weights[8]) {
    const __m256i unsign = _mm256_set1_epi8((char)0x88), nibble = _mm256_set1_epi8(15);
    for (int half = 0; half < 2; half++) {
        __m256i left = _mm256_xor_si256(load(block->nibbles + 64 * half), unsign);
        __m256i right = _mm256_xor_si256(load(block->nibbles + 64 * half + 32), unsign);
        __m256i first = _mm256_blend_epi32(left, _mm256_shuffle_epi32(right, 0xB1), 0xAA);
        __m256i second = _mm256_blend_epi32(_mm256_shuffle_epi32(left, 0xB1), right, 0xAA);
        weights[2 * half] = _mm256_and_si256(first, nibble);
        weights[2 * half + 1] = _mm256_and_si256(second, nibble);
        weights[2 * half + 4] = _mm256_and_si256(_mm256_srli_epi16(first, 4), nibble);
        weights[2 * half + 5] = _mm256_and_si256(_mm256_srli_epi16(second, 4), nibble);
    }
}

INLINE __m256 multiply(const __m256i weights[8], const int8_t *row, uint32_t start, __m256 scale, __m256 sum) {
    __m256i halves = _mm256_set1_epi32((int32_t)start);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        __m256i bytes = repeat(row + i / 2 * GROUP * 8 + i % 2 * 4);
        halves = _mm256_add_epi16(halves, _mm256_maddubs_epi16(weights[i], bytes));
    }
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_madd_epi16(halves, _mm256_set1_epi16(1))), scale, sum);
}

/* Multiply eight columns by 4 * groups rows. first: s holds nothing yet. */
INLINE void tile(int groups, const Weights *weights, const Rows *rows, size_t stride, Prepared prepared[][SLAB],
                 int blocks, int first, float *s, size_t bs) {
    const __m128i column_order = _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7), back = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    __m256 sums[GROUPS * GROUP];
    for (int r = 0; r < groups * GROUP; r++)
        sums[r] = first ? _mm256_setzero_ps() : _mm256_permutevar8x32_ps(_mm256_loadu_ps(s + r * bs), order);
    for (int b = 0; b < blocks; b++) {
        __m256i unpacked[8];
        unpack(weights + b, unpacked);
        __m128i columns = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)weights[b].scale), column_order);
        __m256 column_scales = _mm256_cvtph_ps(columns);
        for (int g = 0; g < groups; g++) {
            const Rows *four = rows + g * stride + b;
            const Prepared *known = &prepared[g][b];
#pragma GCC unroll 4
            for (int r = 0; r < GROUP; r++) {
                __m256 scale = _mm256_mul_ps(column_scales, _mm256_set1_ps(known->scale[r]));
                __m256 *sum = sums + g * GROUP + r;
                *sum = multiply(unpacked, four->bytes + 8 * r, known->start[r], scale, *sum);
            }
        }
    }
    for (int r = 0; r < groups * GROUP; r++)
        _mm256_storeu_ps(s + r * bs, _mm256_permutevar8x32_ps(sums[r], back));
}

/* A function for each number of groups, so that the compiler knows it. */
#define SLAB_OF(groups)                                                                                               \
    AVX2 static void slab_of_##groups(const Weights *weights, const Rows *rows, size_t stride,                        \
                                      Prepared prepared[][SLAB], int blocks, int first, float *s, size_t bs, int nc) { \
        for (int x = 0; x < nc / COLUMNS; x++)                                                                        \
            tile(groups, weights + x * stride, rows, stride, prepared, blocks, first, s + x * COLUMNS, bs);           \
    }
SLAB_OF(1)
SLAB_OF(2)
SLAB_OF(3)
SLAB_OF(4)

/* s[r * bs + c] = the sum over i < n of weight i of column c times value i of row r, for r < nr, c < nc.
 *
 * n, nr, nc: multiples of 32, 4, 8. weights: nc / 8 times n / 32 blocks. rows: nr / 4 times n / 32 blocks. */
void ggml_gemm_q4_0_8x8_q8_0(int n, float *s, size_t bs, const void *weights, const void *rows, int nr, int nc) {
    static void (*const slab_of[])(const Weights *, const Rows *, size_t, Prepared[][SLAB], int, int, float *, size_t,
                                   int) = {slab_of_1, slab_of_2, slab_of_3, slab_of_4};
    if (nr >= original_from) {
        original(n, s, bs, weights, rows, nr, nc);
        return;
    }
    const size_t stride = (size_t)(n / BLOCK);
    Prepared prepared[GROUPS][SLAB];
    for (int y = 0; y < nr / GROUP; y += GROUPS) {
        const int left = nr / GROUP - y, groups = left < GROUPS ? left : GROUPS;
        for (size_t k = 0; k < stride; k += SLAB) {
            const int blocks = stride - k < SLAB ? (int)(stride - k) : SLAB;
            const Rows *first = (const Rows *)rows + y * stride + k;
            for (int g = 0; g < groups; g++)
                prepare(first + g * stride, blocks, prepared[g]);
            slab_of[groups - 1]((const Weights *)weights + k, first, stride, prepared, blocks, k == 0,
                                s + (size_t)y * GROUP * bs, bs, nc);
        }
    }
}

#else

typedef int nothing_to_compile_here;

#endif
