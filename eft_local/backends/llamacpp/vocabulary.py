"""A model's vocabulary as llama.cpp sees it: texts to token ids and back."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property

import llama_cpp
import numpy as np
import numpy.typing as npt

from eft_local.backends.specials import Special, Specials
from eft_local.errors import EvaluationError


class LlamaVocabulary:
    """Implements `base.Vocabulary` on llama.cpp. Valid while its model is open."""

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self._pieces: dict[int, bytes] = {}
        self._ends: dict[int, bool] = {}

    @cached_property
    def n_tokens(self) -> int:
        return int(llama_cpp.llama_vocab_n_tokens(self.handle))

    @cached_property
    def bos(self) -> int | None:
        token = int(llama_cpp.llama_vocab_bos(self.handle))
        return token if token >= 0 else None

    @cached_property
    def eos(self) -> int | None:
        token = int(llama_cpp.llama_vocab_eos(self.handle))
        return token if token >= 0 else None

    @cached_property
    def add_bos(self) -> bool:
        return bool(llama_cpp.llama_vocab_get_add_bos(self.handle))

    @cached_property
    def add_eos(self) -> bool:
        return bool(llama_cpp.llama_vocab_get_add_eos(self.handle))

    @property
    def needs_bytes_but_has_none(self) -> bool:
        """Whether llama.cpp would abort on a character that no token has (SentencePiece falls back to bytes)."""
        if llama_cpp.llama_vocab_type(self.handle) != llama_cpp.LLAMA_VOCAB_TYPE_SPM:
            return False
        return not np.any(self.attributes() & llama_cpp.LLAMA_TOKEN_ATTR_BYTE)

    def is_eog(self, token: int) -> bool:
        found = self._ends.get(token)
        if found is None:
            found = self._ends[token] = bool(llama_cpp.llama_vocab_is_eog(self.handle, token))
        return found

    def ends(self) -> Sequence[int]:
        return self._all_ends

    @cached_property
    def _all_ends(self) -> tuple[int, ...]:
        own = [] if self.eos is None else [self.eos]
        tokens = dict.fromkeys([*own, *sorted(special.token for special in self.specials())])
        return tuple(token for token in tokens if self.is_eog(token))

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Return the ids of `text`. add_special: with BOS and its like, as the vocabulary says.

        parse_special: read markup such as <|im_end|> as the control tokens that it names.
        """
        data = text.encode("utf-8")
        room = len(data) + 8
        while True:
            tokens = (llama_cpp.llama_token * room)()
            count = llama_cpp.llama_tokenize(self.handle, data, len(data), tokens, room, add_special, parse_special)
            if count >= 0:
                # A prompt is there to be continued: the end token that some vocabularies add would say the opposite.
                ended = add_special and self.add_eos and count and tokens[count - 1] == self.eos
                return list(tokens[: count - 1 if ended else count])
            if -count <= room:
                raise EvaluationError(f"llama.cpp could not tokenise a text of {len(data)} bytes")
            room = -count

    def piece(self, token: int) -> bytes:
        found = self._pieces.get(token)
        if found is None:
            found = self._pieces[token] = self._piece(token, special=False)
        return found

    def _piece(self, token: int, *, special: bool) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = llama_cpp.llama_token_to_piece(self.handle, token, buffer, size, 0, special)
            if length >= 0:
                return buffer.raw[:length]
            size = -length

    def text(self, token: int | None) -> str:
        """The visible form of a token, special tokens too (`<s>`); empty for None."""
        return "" if token is None else self._piece(token, special=True).decode("utf-8", "replace")

    def specials(self) -> Specials:
        return self._specials

    @cached_property
    def _specials(self) -> Specials:
        attributes = self.attributes()
        special = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
        special |= llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED
        found = []
        for token in np.flatnonzero(attributes & special).tolist():
            # A text that is not UTF-8 can stand in no prompt; one that is empty stands everywhere and nowhere.
            with suppress(UnicodeDecodeError):
                text = (llama_cpp.llama_vocab_get_text(self.handle, token) or b"").decode()
                found += [Special(text, token, int(attributes[token]))] if text else []
        return Specials(found)

    def texts(self) -> list[bytes]:
        get = llama_cpp.llama_vocab_get_text
        return [get(self.handle, token) or b"" for token in range(self.n_tokens)]

    def attributes(self) -> npt.NDArray[np.int32]:
        return self._attributes

    @cached_property
    def _attributes(self) -> npt.NDArray[np.int32]:
        get = llama_cpp.llama_vocab_get_attr
        ids = range(self.n_tokens)
        return np.fromiter((get(self.handle, token) for token in ids), np.int32, self.n_tokens)
