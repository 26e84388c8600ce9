"""Writes a tiny Mamba model as a GGUF file: a model whose state cannot drop the end of a sequence."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from eft_local.bench.studies.gguf_factory import Tokens

N_EMBD, N_LAYER, N_INNER, N_STATE, N_CONV, DT_RANK = 32, 2, 64, 16, 4, 4


def write_mamba(path: Path, tokens: Tokens, seed: int = 0, template: str | None = None) -> Path:
    """Write a Mamba with random weights and return the path."""
    writer = gguf.GGUFWriter(path, "mamba")
    writer.add_context_length(512)
    writer.add_embedding_length(N_EMBD)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(N_LAYER)
    writer.add_ssm_conv_kernel(N_CONV)
    writer.add_ssm_inner_size(N_INNER)
    writer.add_ssm_state_size(N_STATE)
    writer.add_ssm_time_step_rank(DT_RANK)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens.texts))
    writer.add_tokenizer_model(tokens.model)
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens.texts)
    writer.add_token_types(tokens.types)
    writer.add_token_merges(tokens.merges or [])
    writer.add_bos_token_id(tokens.bos or 0)
    writer.add_eos_token_id(tokens.eos or 0)
    writer.add_add_bos_token(tokens.add_bos)
    if template is not None:
        writer.add_chat_template(template)
    random = np.random.default_rng(seed)

    def add(name: str, *shape: int, scale: float = 1.0) -> None:
        writer.add_tensor(name, (scale * random.standard_normal(shape)).astype(np.float32))

    def add_ones(name: str, *shape: int) -> None:
        writer.add_tensor(name, np.ones(shape, np.float32))

    add("token_embd.weight", len(tokens.texts), N_EMBD)
    add_ones("output_norm.weight", N_EMBD)
    add("output.weight", len(tokens.texts), N_EMBD, scale=0.5)
    for layer in range(N_LAYER):
        block = f"blk.{layer}."
        add_ones(f"{block}attn_norm.weight", N_EMBD)
        add(f"{block}ssm_in.weight", 2 * N_INNER, N_EMBD, scale=0.3)
        add(f"{block}ssm_conv1d.weight", N_INNER, N_CONV, scale=0.5)
        add(f"{block}ssm_conv1d.bias", N_INNER, scale=0.1)
        add(f"{block}ssm_x.weight", DT_RANK + 2 * N_STATE, N_INNER, scale=0.3)
        add(f"{block}ssm_dt.weight", N_INNER, DT_RANK, scale=0.3)
        add(f"{block}ssm_dt.bias", N_INNER, scale=0.1)
        writer.add_tensor(f"{block}ssm_a", np.tile(-np.arange(1, N_STATE + 1, dtype=np.float32), (N_INNER, 1)))
        add_ones(f"{block}ssm_d", N_INNER)
        add(f"{block}ssm_out.weight", N_EMBD, N_INNER, scale=0.3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
