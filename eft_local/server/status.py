"""Whether the server is well, and its figures."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from eft_local.server.calls import service_of
from eft_local.server.errors import json_response

router = APIRouter()


@router.get("/health", responses={503: {"description": "Models are being loaded"}})
async def health(request: Request) -> Response:
    """Say whether the models are loaded; no key is needed."""
    service = service_of(request)
    service.check_ready()
    return json_response({"status": "ok"})


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Return figures for Prometheus."""
    return Response(service_of(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
