"""What the header of a file tells of its tokens is what llama.cpp makes of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf.constants import TokenType

from eft_local.backends.llamacpp import Model
from eft_local.bench.studies.gguf_factory import CHATML, ModelSpec, bpe, write_model
from eft_local.gguf.header import read_vocabulary

# One of each kind that llama.cpp looks for: of several it takes whichever its hash table has first.
ENDS = (
    "<|eot_id|> <|im_end|> <|return|> <|flush|> <end_of_turn> <|endoftext|> </s> <|eom_id|> <EOT> _<EOT> [EOT] [EOS] "
    "<|end_of_text|> <end_of_utterance> <eos> <turn|> [e~[ <｜end▁of▁sentence｜>"
).split()
FIM = "<|fim_prefix|> <|fim_suffix|> <|fim_middle|> <|fim_pad|> <|fim_repo|> <|file_sep|>".split()
SHOWN = "<|channel|> <|message|> <|start|> <|constrain|>".split()


@pytest.mark.parametrize("kind", [TokenType.NORMAL, TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNUSED])
@pytest.mark.parametrize(
    "special",
    [
        [*ENDS, *FIM, *SHOWN, "<unused7>", "<reserved>"],
        ["<|call|>", "<|end|>", "<|return|>", "<|im_end|>"],
        ["<|calls|>", "<|end|>", "<|flush|>"],
        ["<|call|>", "<|end|>", "<|calls|>"],
        ["</s>", "<|tool_response>"],
        ["▁<PRE>", "▁<SUF>", "▁<MID>", "<PAD>"],
        ["<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<fim_pad>", "<reponame>"],
    ],
)
def test_the_kinds_that_llama_corrects_are_corrected(tmp_path: Path, special: list[str], kind: TokenType) -> None:
    tokens = bpe(special=("<|begin|>", *special, "<|stop|>"))
    types = [kind if text in special else each for text, each in zip(tokens.texts, tokens.types, strict=True)]
    path = write_model(tmp_path / "model.gguf", ModelSpec(tokens=replace(tokens, types=types)))
    header = read_vocabulary(path)
    with Model.load(path, trusted=True) as model:
        assert header.texts() == model.vocabulary.texts()
        np.testing.assert_array_equal(header.attributes(), model.vocabulary.attributes())


def test_it_reports_what_tokenizer_it_is(tmp_path: Path) -> None:
    named = ModelSpec(template=CHATML, metadata={"tokenizer.ggml.pre": "qwen2"})
    header = read_vocabulary(write_model(tmp_path / "named.gguf", named))
    assert (header.model, header.pre, header.chat_template) == ("gpt2", "qwen2", CHATML)
