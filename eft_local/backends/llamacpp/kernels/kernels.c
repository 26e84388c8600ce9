/* Matrix products of several rows with Q4_0 and Q4_K weights on x86-64 CPUs: what drafts, batches and prompts cost.
 *
 * llama.cpp keeps such weights of eight columns interleaved (ggml/src/ggml-cpu/repack.h), and calls one function for
 * every four rows or more. Its AVX2 kernels spend most of their instructions on signs and shuffles, and unpack the
 * weights anew for every four rows. These give the same bits in less than half the time:
 *
 * - A nibble of Q4_0 is taken as 0 ... 15 instead of -8 ... 7, so that one instruction multiplies it by a signed byte;
 *   eight times the sum of a row's bytes, known beforehand, is what that adds too much.
 * - Products are added in 16 bits, two halves for each column. A nibble times a byte is at most 15 * 128, and a half
 *   has 16 of them: 30720 < 2^15. Q4_0 begins with -4 times the sum of all 32 bytes in each half: what is left is
 *   (nibble - 4) * byte of its own bytes and -4 * byte of the others, at most 16 * 11 * 128 + 16 * 4 * 128, the same.
 *   What overflows on the way wraps back.
 * - Weights are unpacked once for up to sixteen rows.
 *
 * Floats are made of the integer sums as llama.cpp makes them, in the same order, so that results are equal to the bit.
 *
 * The functions have llama.cpp's own names: loaded before it and for all to see, they are what its library finds.
 * kernels.py does that, and compares each with llama.cpp's before it lets it answer.
 */

/* A bit for each function that stands in the place of one of llama.cpp's and was called since this was last read:
 * whether llama.cpp finds ours depends on how it was linked. */
enum { CALLED_Q4_0 = 1, CALLED_Q4_K = 2 };
unsigned eft_called;

unsigned eft_kernels_called(void) {
    return __atomic_exchange_n(&eft_called, 0, __ATOMIC_RELAXED);
}

void eft_note_call(unsigned bit) {
    if (!(__atomic_load_n(&eft_called, __ATOMIC_RELAXED) & bit)) __atomic_fetch_or(&eft_called, bit, __ATOMIC_RELAXED);
}

#if defined(__x86_64__) && defined(__linux__)

#include <immintrin.h>
#include <limits.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define AVX2 __attribute__((target("avx2,fma,f16c")))
#define INLINE static inline __attribute__((always_inline)) AVX2

enum {
    BLOCK = 32,  /* weights that share a scale */
    SUPER = 256, /* weights of Q4_K that share a scale of scales */
    COLUMNS = 8, /* of weights, interleaved */
    GROUP = 4,   /* rows, interleaved */
    GROUPS = 4,  /* at most so many at once */
    SLAB = 128,  /* blocks of Q4_0 after which the next columns are taken: of eight rows they fill the first cache */
    LONGEST = 256, /* blocks of SUPER weights that a row can have */
};

typedef void (*Gemm)(int n, float *s, size_t bs, const void *weights, const void *rows, int nr, int nc);

/* llama.cpp's own functions, asked from so many rows on. */
enum { Q4_0, Q4_K };
static struct {
    Gemm gemm;
    int from;
} theirs[] = {{0, INT_MAX}, {0, INT_MAX}};

void eft_kernels_use(int kind, Gemm gemm, int from) {
    theirs[kind].gemm = gemm;
    theirs[kind].from = from;
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

/* Both kinds: eight columns are taken in the order 0 4 1 5 2 6 3 7, which is the cheapest to unpack. */

INLINE __m256i load(const void *bytes) {
    return _mm256_loadu_si256((const __m256i *)bytes);
}

INLINE __m256i repeat(const void *four_bytes) {
    int32_t value;
    memcpy(&value, four_bytes, sizeof value);
    return _mm256_set1_epi32(value);
}

INLINE __m256 column_scales(const uint16_t *scales) {
    const __m128i order = _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
    return _mm256_cvtph_ps(_mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)scales), order));
}

INLINE __m256 read_columns(const float *s) {
    return _mm256_permutevar8x32_ps(_mm256_loadu_ps(s), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

INLINE void write_columns(float *s, __m256 values) {
    _mm256_storeu_ps(s, _mm256_permutevar8x32_ps(values, _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7)));
}

/* Eight bytes of each of eight columns become the first four of all, and the last four. */
INLINE void by_column(__m256i left, __m256i right, __m256i *first, __m256i *last) {
    *first = _mm256_blend_epi32(left, _mm256_shuffle_epi32(right, 0xB1), 0xAA);
    *last = _mm256_blend_epi32(_mm256_shuffle_epi32(left, 0xB1), right, 0xAA);
}

INLINE __m256i low_nibbles(__m256i bytes) {
    return _mm256_and_si256(bytes, _mm256_set1_epi8(15));
}

INLINE __m256i high_nibbles(__m256i bytes) {
    return low_nibbles(_mm256_srli_epi16(bytes, 4));
}

/* Two lanes for each column: start, and 32 nibbles times the bytes of a row. weights[i]: 4i ... 4i + 3 of all columns;
 * row: its bytes stand eight by eight, as far apart as a group's are. */
INLINE __m256i products(const __m256i weights[8], const int8_t *row, __m256i start) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        __m256i bytes = repeat(row + i / 2 * GROUP * 8 + i % 2 * 4);
        start = _mm256_add_epi16(start, _mm256_maddubs_epi16(weights[i], bytes));
    }
    return start;
}

/* ---------------------------------------------------------------------------------------------------------- Q4_0 */

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

INLINE void unpack(const Weights *block, __m256i weights[8]) {
    const __m256i unsign = _mm256_set1_epi8((char)0x88);
    for (int half = 0; half < 2; half++) {
        __m256i left = _mm256_xor_si256(load(block->nibbles + 64 * half), unsign), first;
        __m256i right = _mm256_xor_si256(load(block->nibbles + 64 * half + 32), unsign), last;
        by_column(left, right, &first, &last);
        weights[2 * half] = low_nibbles(first);
        weights[2 * half + 1] = low_nibbles(last);
        weights[2 * half + 4] = high_nibbles(first);
        weights[2 * half + 5] = high_nibbles(last);
    }
}

/* Multiply eight columns by 4 * groups rows, some blocks of each. first: s holds nothing yet. */
INLINE void tile(int groups, const Weights *weights, const Rows *rows, size_t stride, Prepared prepared[][SLAB],
                 int blocks, int first, float *s, size_t bs) {
    __m256 sums[GROUPS * GROUP];
    for (int r = 0; r < groups * GROUP; r++)
        sums[r] = first ? _mm256_setzero_ps() : read_columns(s + r * bs);
    for (int b = 0; b < blocks; b++) {
        __m256i unpacked[8];
        unpack(weights + b, unpacked);
        __m256 columns = column_scales(weights[b].scale);
        for (int g = 0; g < groups; g++) {
            const int8_t *bytes = rows[g * stride + b].bytes;
            const Prepared *known = &prepared[g][b];
#pragma GCC unroll 4
            for (int r = 0; r < GROUP; r++) {
                __m256i halves = products(unpacked, bytes + 8 * r, _mm256_set1_epi32((int)known->start[r]));
                __m256 whole = _mm256_cvtepi32_ps(_mm256_madd_epi16(halves, _mm256_set1_epi16(1)));
                __m256 scale = _mm256_mul_ps(columns, _mm256_set1_ps(known->scale[r]));
                sums[g * GROUP + r] = _mm256_fmadd_ps(whole, scale, sums[g * GROUP + r]);
            }
        }
    }
    for (int r = 0; r < groups * GROUP; r++)
        write_columns(s + r * bs, sums[r]);
}

/* A function for each number of groups, so that the compiler knows it. */
#define TILES_OF(groups)                                                                                               \
    AVX2 static void tiles_of_##groups(const Weights *weights, const Rows *rows, size_t stride,                        \
                                       Prepared prepared[][SLAB], int blocks, int first, float *s, size_t bs,     \
                                       int nc) {                                                                  \
        for (int x = 0; x < nc / COLUMNS; x++)                                                                         \
            tile(groups, weights + x * stride, rows, stride, prepared, blocks, first, s + x * COLUMNS, bs);            \
    }
TILES_OF(1)
TILES_OF(2)
TILES_OF(3)
TILES_OF(4)

/* s[r * bs + c] = the sum over i < n of weight i of column c times value i of row r, for r < nr, c < nc.
 *
 * n, nr, nc: multiples of 32, 4, 8. weights: nc / 8 times n / 32 blocks. rows: nr / 4 times n / 32 blocks. */
void ggml_gemm_q4_0_8x8_q8_0(int n, float *s, size_t bs, const void *weights, const void *rows, int nr, int nc) {
    eft_note_call(CALLED_Q4_0);
    static void (*const tiles_of[])(const Weights *, const Rows *, size_t, Prepared[][SLAB], int, int, float *, size_t,
                                    int) = {tiles_of_1, tiles_of_2, tiles_of_3, tiles_of_4};
    if (nr >= theirs[Q4_0].from) {
        theirs[Q4_0].gemm(n, s, bs, weights, rows, nr, nc);
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
            tiles_of[groups - 1]((const Weights *)weights + k, first, stride, prepared, blocks, k == 0,
                                 s + (size_t)y * GROUP * bs, bs, nc);
        }
    }
}

/* ---------------------------------------------------------------------------------------------------------- Q4_K */

typedef struct {
    uint16_t scale[COLUMNS], least[COLUMNS]; /* F16 */
    uint8_t parts[8][12];                    /* scales and minima of 32 weights of each column, 6 bits each */
    uint8_t nibbles[4][COLUMNS * BLOCK];     /* of two parts each, low and high; bytes 8i ... are of column i % 8 */
} SuperWeights;                              /* block_q4_Kx8 */

typedef struct {
    float scale[GROUP];
    int8_t bytes[8][GROUP * BLOCK]; /* of each part: bytes 8i ... 8i + 7 are of row i % 4 */
    int16_t sums[4][GROUP * 4];     /* of two parts each: of every sixteen bytes, four of each row */
} SuperRows;                        /* block_q8_Kx4 */

typedef struct {
    uint32_t sums[4][GROUP]; /* of two parts each: the sums of both, 16 bits each */
} SuperPrepared;

AVX2 static void prepare_super(const SuperRows *rows, size_t blocks, SuperPrepared *prepared) {
    for (size_t b = 0; b < blocks; b++)
        for (int two = 0; two < 4; two++) {
            __m256i sums = _mm256_madd_epi16(load(rows[b].sums[two]), _mm256_set1_epi16(1)); /* of row r: 2r, 2r + 1 */
            __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi32(sums, sums), 0x08);
            _mm_storeu_si128((__m128i *)prepared[b].sums[two], _mm256_castsi256_si128(packed));
        }
}

INLINE __m256i numbers_of_columns(uint32_t first_four, uint32_t last_four) {
    __m128i bytes = _mm_unpacklo_epi8(_mm_cvtsi32_si128((int)first_four), _mm_cvtsi32_si128((int)last_four));
    return _mm256_cvtepu8_epi32(bytes);
}

INLINE void unpack_part(const uint8_t *part, __m256i *scales, __m256i *least) {
    uint32_t words[3];
    memcpy(words, part, sizeof words);
    *scales = numbers_of_columns(words[0] & 0x3F3F3F3F, (words[2] & 0x0F0F0F0F) | (words[0] >> 2 & 0x30303030));
    *least = numbers_of_columns(words[1] & 0x3F3F3F3F, (words[2] >> 4 & 0x0F0F0F0F) | (words[1] >> 2 & 0x30303030));
}

/* Multiply eight columns by 4 * groups rows: whole numbers over a block, then floats, as llama.cpp does for one row. */
INLINE void super_tile(int groups, const SuperWeights *weights, const SuperRows *rows, size_t stride,
                       SuperPrepared prepared[][LONGEST], float *s, size_t bs) {
    const __m256i zero = _mm256_setzero_si256();
    __m256 sums[GROUPS * GROUP], minima[GROUPS * GROUP];
    __m256i whole[GROUPS * GROUP], below[GROUPS * GROUP];
    for (int r = 0; r < groups * GROUP; r++)
        sums[r] = minima[r] = _mm256_setzero_ps();
    for (size_t b = 0; b < stride; b++) {
        for (int r = 0; r < groups * GROUP; r++)
            whole[r] = below[r] = zero;
        for (int two = 0; two < 4; two++) {
            __m256i packed[8], unpacked[8], scales[2], least[2];
            for (int i = 0; i < 2; i++) {
                unpack_part(weights[b].parts[2 * two + i], scales + i, least + i);
                scales[i] = _mm256_or_si256(scales[i], _mm256_slli_epi32(scales[i], 16));
            }
            least[0] = _mm256_or_si256(least[0], _mm256_slli_epi32(least[1], 16));
            for (int i = 0; i < 4; i++) {
                const uint8_t *bytes = weights[b].nibbles[two] + 64 * i;
                by_column(load(bytes), load(bytes + 32), packed + 2 * i, packed + 2 * i + 1);
            }
            for (int i = 0; i < 8; i++)
                unpacked[i] = low_nibbles(packed[i]);
            for (int g = 0; g < groups; g++) {
                const int8_t *bytes = rows[g * stride + b].bytes[2 * two];
                const uint32_t *known = prepared[g][b].sums[two];
#pragma GCC unroll 4
                for (int r = 0; r < GROUP; r++) {
                    const int i = g * GROUP + r;
                    __m256i product = _mm256_madd_epi16(products(unpacked, bytes + 8 * r, zero), scales[0]);
                    __m256i minimum = _mm256_madd_epi16(_mm256_set1_epi32((int)known[r]), least[0]);
                    whole[i] = _mm256_add_epi32(whole[i], product);
                    below[i] = _mm256_add_epi32(below[i], minimum);
                }
            }
            for (int i = 0; i < 8; i++)
                unpacked[i] = high_nibbles(packed[i]);
            for (int g = 0; g < groups; g++) {
                const int8_t *bytes = rows[g * stride + b].bytes[2 * two + 1];
#pragma GCC unroll 4
                for (int r = 0; r < GROUP; r++) {
                    __m256i product = _mm256_madd_epi16(products(unpacked, bytes + 8 * r, zero), scales[1]);
                    whole[g * GROUP + r] = _mm256_add_epi32(whole[g * GROUP + r], product);
                }
            }
        }
        __m256 columns = column_scales(weights[b].scale), column_minima = column_scales(weights[b].least);
        for (int r = 0; r < groups * GROUP; r++) {
            __m256 scale = _mm256_set1_ps(rows[r / GROUP * stride + b].scale[r % GROUP]);
            sums[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole[r]), _mm256_mul_ps(columns, scale), sums[r]);
            minima[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(below[r]), _mm256_mul_ps(column_minima, scale), minima[r]);
        }
    }
    for (int r = 0; r < groups * GROUP; r++)
        write_columns(s + r * bs, _mm256_sub_ps(sums[r], minima[r]));
}

#define SUPER_TILES_OF(groups)                                                                                  \
    AVX2 static void super_tiles_of_##groups(const SuperWeights *weights, const SuperRows *rows, size_t stride, \
                                             SuperPrepared prepared[][LONGEST], float *s, size_t bs, int nc) {  \
        for (int x = 0; x < nc / COLUMNS; x++)                                                                  \
            super_tile(groups, weights + x * stride, rows, stride, prepared, s + x * COLUMNS, bs);              \
    }
SUPER_TILES_OF(1)
SUPER_TILES_OF(2)
SUPER_TILES_OF(3)
SUPER_TILES_OF(4)

/* The same with Q4_K weights; n: a multiple of 256. */
void ggml_gemm_q4_K_8x8_q8_K(int n, float *s, size_t bs, const void *weights, const void *rows, int nr, int nc) {
    eft_note_call(CALLED_Q4_K);
    static void (*const tiles_of[])(const SuperWeights *, const SuperRows *, size_t, SuperPrepared[][LONGEST], float *,
                                    size_t, int) = {super_tiles_of_1, super_tiles_of_2, super_tiles_of_3,
                                                    super_tiles_of_4};
    if (nr >= theirs[Q4_K].from || n > LONGEST * SUPER) {
        theirs[Q4_K].gemm(n, s, bs, weights, rows, nr, nc);
        return;
    }
    const size_t stride = (size_t)(n / SUPER);
    SuperPrepared prepared[GROUPS][LONGEST];
    for (int y = 0; y < nr / GROUP; y += GROUPS) {
        const int left = nr / GROUP - y, groups = left < GROUPS ? left : GROUPS;
        const SuperRows *first = (const SuperRows *)rows + y * stride;
        for (int g = 0; g < groups; g++)
            prepare_super(first + g * stride, stride, prepared[g]);
        tiles_of[groups - 1](weights, first, stride, prepared, s + (size_t)y * GROUP * bs, bs, nc);
    }
}

#else

typedef int nothing_to_compile_here;

#endif
