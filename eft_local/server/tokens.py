"""llama.cpp's and vLLM's routes for text and tokens, with which harnesses align theirs."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from eft_local.backends.base import Vocabulary
from eft_local.backends.tokenize import tokenize_text
from eft_local.errors import UsageError
from eft_local.recipe import checks
from eft_local.server.calls import service_of
from eft_local.server.errors import json_response
from eft_local.server.schema import DetokenizeRequest, TokenizeRequest
from eft_local.server.service import check_length

router = APIRouter()


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, request: Request) -> Response:
    """Return a text's tokens; as with llama.cpp and vLLM, special ones too, unless `parse_special` is false."""
    model = service_of(request).model(body.model)
    text = body.content if body.content is not None else body.prompt
    if text is None:
        raise UsageError("content is missing; send the text as content, or as prompt")
    checks.given_text("content", text)
    # llama.cpp's default is without, vLLM's with: each by its own name.
    default = body.content is None
    special = next((each for each in (body.add_special, body.add_special_tokens) if each is not None), default)

    def find() -> Any:
        vocabulary = model.vocabulary
        check_length(text, model.recipe.context)
        if body.parse_special is not False:
            tokens = vocabulary.tokenize(text, add_special=special, parse_special=True)
        else:
            tokens = tokenize_text(vocabulary, text, add_special=special)
        pieces = [vocabulary.piece(token).decode("utf-8", "backslashreplace") for token in tokens]
        listed = [{"id": token, "piece": piece} for token, piece in zip(tokens, pieces, strict=True)]
        return {
            "tokens": listed if body.with_pieces else tokens,
            "count": len(tokens),
            "max_model_len": model.recipe.context,
        }

    return json_response(await asyncio.to_thread(find))


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
    """Return what tokens spell."""
    model = service_of(request).model(body.model)

    def find() -> Any:
        vocabulary = model.vocabulary
        for token in body.tokens:
            if token >= vocabulary.n_tokens:
                raise UsageError(f"tokens holds {token}; the tokens are 0 … {vocabulary.n_tokens - 1}")
        text = b"".join(map(vocabulary.piece, body.tokens)).decode("utf-8", "replace")
        return {"content": text, "prompt": text}

    return json_response(await asyncio.to_thread(find))


@router.get("/tokenizer_info")
async def tokenizer_info(request: Request, model: str | None = None) -> Response:
    """Return what a harness asks of a tokenizer."""
    found = service_of(request).model(model)

    def find() -> Any:
        vocabulary = found.vocabulary
        ends = vocabulary.ends()
        template = next((role.model.chat_template for role in found.roles.values() if role.template), None)
        return {
            "tokenizer_class": "eft-local",
            "bos_token": _text(vocabulary, vocabulary.bos),
            "eos_token": _text(vocabulary, ends[0] if ends else None),
            "pad_token": _text(vocabulary, ends[0] if ends else None),
            "vocab_size": vocabulary.n_tokens,
            "model_max_length": found.recipe.context,
            "chat_template": template,
        }

    return json_response(await asyncio.to_thread(find))


def _text(vocabulary: Vocabulary, token: int | None) -> str | None:
    """Return how a vocabulary writes a token, control tokens as well."""
    return None if token is None else vocabulary.texts()[token].decode("utf-8", "replace")
