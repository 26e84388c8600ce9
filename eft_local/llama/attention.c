// Flash attention whose rows have the bits that they have alone.
//
// llama.cpp adds in another order where one row looks at 512 cells or more (its threads share them) and from 64 rows on
// (tiles). Its reference implementation, which tests of it ask for, takes neither way: each row goes through all cells.

#include <stdbool.h>
#include <stddef.h>

// The first members of ggml_compute_params (ggml-cpu-impl.h).
typedef struct {
    int thread, threads;
    size_t size;
    void *memory;
    void *pool;
    bool reference;
} Params;

typedef void (*Attention)(Params *, void *);

static Attention theirs;
static bool exact;

void eft_attention_begin(Attention attention) { theirs = attention; }

void eft_attention_use(bool reference) { exact = reference; }

// Not a copy with another flag: a later llama.cpp may have more members behind it. Each thread has parameters of its own.
void ggml_compute_forward_flash_attn_ext(Params *params, void *result) {
    const bool before = params->reference;
    params->reference |= exact;
    theirs(params, result);
    params->reference = before;
}
