"""A model's tokenizer as its file's header has it, so that models are compared before any of them is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from eft_local.gguf.checks import check_gguf
from eft_local.gguf.reader import Value

_UNKNOWN, _UNUSED, _NORMAL, _CONTROL, _USER_DEFINED, _BYTE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5
# Attribute bits (llama.cpp's llama_token_attr) by GGUF's token types, from "undefined" on.
_ATTRIBUTES = np.array([0, _NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE], np.int32)

# Whatever a file says of them, llama.cpp takes these for control tokens (llama-vocab.cpp, "control-looking token").
_CONTROL_LOOKING = frozenset(
    (
        "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> </s> "
        "<|eom_id|> <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response> [e~[ "
        "<｜end▁of▁sentence｜> <|fim_prefix|> <fim-prefix> <fim_prefix> <｜fim▁begin｜> <PRE> ▁<PRE> <|code_prefix|> "
        "<|prefix|> <|fim_suffix|> <fim-suffix> <fim_suffix> <｜fim▁hole｜> <SUF> ▁<SUF> <|code_suffix|> <|suffix|> "
        "<|fim_middle|> <fim-middle> <fim_middle> <｜fim▁end｜> <MID> ▁<MID> <|code_middle|> <|middle|> <|fim_pad|> "
        "<fim-pad> <fim_pad> <PAD> [PAD] <|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame> <|file_sep|>"
    )
    .encode()
    .split()
)
# Others get another kind: markup that is shown, "<|end|>" of formats that have both of these, "</s>" beside these.
_SHOWN = frozenset(b"<|channel|> <|message|> <|start|> <|constrain|>".split())
_CALLS, _CHANNELS = frozenset((b"<|call|>", b"<|calls|>")), frozenset((b"<|return|>", b"<|flush|>"))
_PLAIN_END = frozenset((b"<|tool_response>", b"<|plamo:eos|>"))
_CORRECTED = _CONTROL_LOOKING | _SHOWN | _PLAIN_END


# Names that llama.cpp has for one and the same pre-tokeniser (llama-vocab.cpp, "tokenizer_pre").
_SAME = {
    name: names.split()[0]
    for names in (
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
        "gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de gigachat a.x-4.0 mellum modern-bert exaone4",
        "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez",
        "gpt-4o llama4 kanana2 talkie",
        "chatglm-bpe glm4 glm5",
        "bailingmoe bailingmoe2 llada-moe",
        "tiny_aya cohere2moe",
    )
    for name in names.split()
}


@dataclass(frozen=True, slots=True)
class Pretokenizer:
    """How a file says that its tokenizer splits a text at first: (tokenizer.ggml.model, tokenizer.ggml.pre)."""

    path: Path
    model: str | None
    pre: str | None

    @property
    def is_read(self) -> bool:
        """Whether llama.cpp goes by it: other kinds of tokenizers split in one way."""
        return self.model == "gpt2"

    @property
    def used(self) -> str:
        """What llama.cpp uses, by one name."""
        name = self.pre or "default"
        return _SAME.get(name, name)


def pretokenizer_warnings(roles: Mapping[str, Pretokenizer]) -> list[str]:
    """Return what there is to say of roles that split a text otherwise than they were trained to, or than the base.

    roles: by name, "base" among them.
    """
    read = {name: each for name, each in roles.items() if each.is_read}
    said = [
        f"{path.name} does not say how its tokenizer splits text (tokenizer.ggml.pre is missing): it is split in "
        "llama.cpp's default way, and answers may be worse; convert the model again"
        for path in dict.fromkeys(each.path for each in read.values() if not each.pre)
    ]
    base = read.get("base")
    if base is None:
        return said
    others = {each.path: each for each in read.values() if each.used != base.used}
    return said + [
        f"{other.path.name} splits text by the pre-tokenizer {other.used!r} and {base.path.name} by {base.used!r}: "
        "they read the same text in other tokens, and answers may be worse; use files that were converted alike"
        for other in others.values()
    ]


@dataclass(frozen=True, slots=True)
class HeaderVocabulary:
    """Implements `vocabulary.TokenTable`; its texts take no more memory than in the file.

    model: the kind of tokenizer.  pre: how it splits a text at first; None if the file does not say.
    chat_template: Jinja, None if there is none.
    """

    path: Path
    model: str | None
    pre: str | None
    chat_template: str | None
    _joined: bytes
    _ends: npt.NDArray[np.int64]
    _attributes: npt.NDArray[np.int32]

    def texts(self) -> list[bytes]:
        """Return every token's text."""
        joined = self._joined
        return [joined[start:end] for start, end in pairwise([0, *self._ends.tolist()])]

    def attributes(self) -> npt.NDArray[np.int32]:
        """Return every token's attribute bits, with the corrections that llama.cpp makes."""
        return self._attributes


def read_vocabulary(path: Path) -> HeaderVocabulary:
    """Return the tokenizer of a file that passes `check_gguf`. Raises: ModelNotFoundError, ModelFileError."""
    metadata = check_gguf(path).metadata
    tokens = metadata.get("tokenizer.ggml.tokens")
    texts = _as_llama_reads(tokens) if isinstance(tokens, list) else []
    return HeaderVocabulary(
        path,
        _text(metadata, "tokenizer.ggml.model"),
        _text(metadata, "tokenizer.ggml.pre"),
        _text(metadata, "tokenizer.chat_template"),
        b"".join(texts),
        np.fromiter(accumulate(map(len, texts)), np.int64, len(texts)),
        _corrected(texts, _attributes(metadata.get("tokenizer.ggml.token_type"), len(texts))),
    )


def _text(metadata: Mapping[str, Value], key: str) -> str | None:
    value = metadata.get(key)
    return value if isinstance(value, str) else None


def _as_llama_reads(tokens: Sequence[bytes]) -> list[bytes]:
    """Return texts as C strings; an empty one gets a name."""
    texts = [text.partition(b"\0")[0] if b"\0" in text else text for text in tokens]
    return [text or b"[EMPTY_%d]" % token for token, text in enumerate(texts)]


def _attributes(types: Value | None, n_tokens: int) -> npt.NDArray[np.int32]:
    if not isinstance(types, np.ndarray):
        return np.full(n_tokens, _NORMAL, np.int32)
    kinds = types[:n_tokens].astype(np.int64)
    kinds[(kinds < 0) | (kinds >= len(_ATTRIBUTES))] = 0
    return _ATTRIBUTES[kinds]


def _corrected(texts: Sequence[bytes], attributes: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Change attributes in place as llama.cpp does, in its order, and return them."""
    ids = {text: token for token, text in enumerate(texts) if text in _CORRECTED}
    for text in _CONTROL_LOOKING & ids.keys():
        attributes[ids[text]] |= _CONTROL
    for token in np.flatnonzero(attributes & _CONTROL).tolist():
        if b"unused" in texts[token]:
            attributes[token] |= _UNUSED
    for text in _SHOWN & ids.keys():
        attributes[ids[text]] = _USER_DEFINED
    if _CALLS & ids.keys() and _CHANNELS & ids.keys() and b"<|end|>" in ids:
        attributes[ids[b"<|end|>"]] = _USER_DEFINED
    if _PLAIN_END & ids.keys() and b"</s>" in ids:
        attributes[ids[b"</s>"]] = _NORMAL
    return attributes
