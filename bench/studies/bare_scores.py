"""Log-probabilities of continuations by llama.cpp alone: its low-level functions, and a softmax in float64.

    python bench/studies/bare_scores.py MODEL.gguf < pairs.json

Reads a JSON list of [context, continuation], writes one of log-probabilities. Every pair is evaluated from nothing, in
one batch, without flash attention. Nothing of eft-local is imported; where its kernels are in place, they are used.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Iterator, Sequence

import llama_cpp
import numpy as np

_quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)  # referred to as long as the process lives


def scores(model_path: str, pairs: Sequence[Sequence[str]]) -> Iterator[float]:
    """Yield the log-probability of each continuation after its context."""
    llama_cpp.llama_backend_init()
    settings = llama_cpp.llama_model_default_params()
    settings.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(model_path.encode(), settings)
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    width = llama_cpp.llama_vocab_n_tokens(vocabulary)
    wanted = llama_cpp.llama_context_default_params()
    wanted.n_ctx = wanted.n_batch = wanted.n_ubatch = 512
    wanted.n_threads = wanted.n_threads_batch = 1
    wanted.flash_attn_type = 0
    context = llama_cpp.llama_init_from_model(model, wanted)

    def tokens_of(text: str, add_special: bool) -> list[int]:
        data = text.encode()
        found = (llama_cpp.llama_token * (len(data) + 8))()
        number = llama_cpp.llama_tokenize(vocabulary, data, len(data), found, len(found), add_special, False)
        return list(found[:number])

    for before, text in pairs:
        prompt, given = tokens_of(before, True), tokens_of(text, False)
        tokens = prompt + given
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for position, token in enumerate(tokens):
            batch.token[position], batch.pos[position] = token, position
            batch.n_seq_id[position], batch.seq_id[position][0] = 1, 0
            batch.logits[position] = True
        if llama_cpp.llama_decode(context, batch):
            raise SystemExit(f"llama_decode failed on {len(tokens)} tokens")
        logprob = 0.0
        for place, token in enumerate(given, start=len(prompt) - 1):
            row = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, place), (width,)).astype(np.float64)
            row -= row.max()
            logprob += float(row[token] - np.log(np.exp(row).sum()))
        llama_cpp.llama_batch_free(batch)
        yield logprob


if __name__ == "__main__":
    llama_cpp.llama_log_set(_quiet, ctypes.c_void_p(0))
    json.dump(list(scores(sys.argv[1], json.load(sys.stdin))), sys.stdout)
