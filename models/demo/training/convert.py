"""Writes a model as a GGUF file that llama.cpp loads as architecture `llama`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from .model import CONTEXT, EPSILON, ROPE_BASE, Llama
from .tokenizer import BOS_ID, CHAT_TEMPLATE, END_ID, EOS_ID, SPECIALS


@dataclass(frozen=True)
class Card:
    """What the file says about itself. `chat` marks a tuned model, which carries the chat template."""

    name: str
    description: str
    chat: bool


def write_gguf(model: Llama, tokenizer_path: Path, card: Card, path: Path) -> None:
    """Write weights and vocabulary. Matrices are Q8_0 where their rows allow it (multiples of 32), otherwise F16."""
    shape = model.shape
    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "llama")
    writer.add_name(card.name)
    writer.add_description(card.description)
    writer.add_license("mit")
    writer.add_size_label(f"{model.parameters_total() / 1e6:.1f}M")
    quantised = all(width % 32 == 0 for width in (shape.width, shape.ff))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0 if quantised else gguf.LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ff)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_layer_norm_rms_eps(EPSILON)
    writer.add_vocab_size(shape.vocabulary)
    _add_tokenizer(writer, tokenizer_path, card.chat)
    for name, weight in _tensors(model).items():
        _add_tensor(writer, name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(path)


def _add_tokenizer(writer: gguf.GGUFWriter, path: Path, chat: bool) -> None:
    model = json.loads(path.read_text(encoding="utf-8"))["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    control, normal = int(gguf.TokenType.CONTROL), int(gguf.TokenType.NORMAL)
    writer.add_token_types([control if token in SPECIALS else normal for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(BOS_ID)
    writer.add_eos_token_id(EOS_ID)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    if chat:
        writer.add_eot_token_id(END_ID)
        writer.add_chat_template(CHAT_TEMPLATE)


def _tensors(model: Llama) -> dict[str, NDArray[np.float32]]:
    """The weights under llama.cpp's names; the output matrix is left out, so that the embeddings are used for it."""
    width, ff = model.shape.width, model.shape.ff
    tensors: dict[str, NDArray[np.float32]] = {}
    for key, value in model.state_dict().items():
        weight = value.float().numpy()
        if "attn_qkv" in key:
            for part, rows in zip(("attn_q", "attn_k", "attn_v"), np.split(weight, [width, 2 * width]), strict=True):
                tensors[key.replace("attn_qkv", part)] = rows
        elif "ffn_gate_up" in key:
            for part, rows in zip(("ffn_gate", "ffn_up"), np.split(weight, [ff]), strict=True):
                tensors[key.replace("ffn_gate_up", part)] = rows
        else:
            tensors[key] = weight
    return tensors


def _add_tensor(writer: gguf.GGUFWriter, name: str, weight: NDArray[np.float32]) -> None:
    if weight.ndim == 1:
        writer.add_tensor(name, weight)
    elif weight.shape[1] % 32 == 0:
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(weight, kind), raw_dtype=kind)
    else:
        writer.add_tensor(name, weight.astype(np.float16))
