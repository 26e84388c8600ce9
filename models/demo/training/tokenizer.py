"""The byte-level BPE tokenizer that all models share; GPT-2's pre-tokenisation, which llama.cpp knows as `gpt-2`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

BOS, EOS, END, USER, ASSISTANT, SYSTEM = "<s>", "</s>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"
SPECIALS = (BOS, EOS, END, USER, ASSISTANT, SYSTEM)
"""Ids 0 to 5, in this order. Documents are BOS … EOS; a chat's turns end with END."""
BOS_ID, EOS_ID, END_ID, USER_ID, ASSISTANT_ID, SYSTEM_ID = range(6)

VOCABULARY = 4096

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], path: Path, vocabulary: int = VOCABULARY) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(path))
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(path))
