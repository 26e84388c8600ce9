"""Variants of a GGUF file, as fine-tunes and old converters leave them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter

Metadata = dict[str, Any]


def derive(
    source: Path,
    target: Path,
    change: Callable[[Metadata], None] = lambda _: None,
    *,
    rows: int = 0,
    drop: Collection[str] = (),
) -> Path:
    """Write a model with other metadata. rows: how many tokens are added; their weights are those of the first."""
    reader = GGUFReader(source)
    fields = {
        name: field
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.") and name != "general.architecture" and name not in drop
    }
    values = {name: field.contents() for name, field in fields.items()}
    change(values)
    writer = GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, value in values.items():
        kinds = fields[name].types
        if kinds[0] == GGUFValueType.ARRAY:
            writer.add_key_value(name, value, kinds[0], sub_type=kinds[-1])
        else:
            writer.add_key_value(name, value, kinds[0])
    for tensor in reader.tensors:
        data = tensor.data
        if rows and tensor.name in ("token_embd.weight", "output.weight"):
            data = np.concatenate([data, np.repeat(data[:1], rows, 0)])
        writer.add_tensor(tensor.name, data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def added(values: Metadata) -> None:
    """Add one control token, as `<pad>` is added before tuning."""
    values["tokenizer.ggml.tokens"].append("<pad>")
    values["tokenizer.ggml.token_type"].append(3)
    if "llama.vocab_size" in values:
        values["llama.vocab_size"] += 1


def renamed_and_added(values: Metadata) -> None:
    """Give a reserved control token another name as well."""
    added(values)
    values["tokenizer.ggml.tokens"][5] = "<|User|>"


def own_end(values: Metadata) -> None:
    """Add the end of turns that the template writes under another name, and make it the end of texts."""
    added(values)
    values["tokenizer.ggml.tokens"][-1] = "<|turn_end|>"
    values["tokenizer.ggml.eos_token_id"] = len(values["tokenizer.ggml.tokens"]) - 1


def refusing(values: Metadata) -> None:
    """Make the template refuse system turns."""
    values["tokenizer.chat_template"] = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system turn here') }}{% endif %}"
        "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
