"""What can be named as `model`: `/v1/models`."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from eft_local.server.answers import ModelEntry, ModelList
from eft_local.server.calls import service_of
from eft_local.server.replies import ERRORS, json_of
from eft_local.server.service import Model, Service

router = APIRouter(responses=ERRORS)


@router.get("/v1/models", response_model=ModelList)
async def models(request: Request) -> Response:
    """List everything that can be named as `model`."""
    service = service_of(request)
    service.check_ready()
    return json_of(ModelList(data=[_entry(service, model) for model in service.models.values()]))


@router.get("/v1/models/{name:path}", response_model=ModelEntry)
async def one_model(name: str, request: Request) -> Response:
    """Describe one of them."""
    service = service_of(request)
    return json_of(_entry(service, service.model(name)))


def _entry(service: Service, model: Model) -> ModelEntry:
    recipe = model.recipe
    eft = {"recipe": recipe.name, "target": model.target, "roles": list(model.emulator.roles), "alpha": recipe.alphas}
    meta = {"n_ctx": recipe.context, "description": recipe.description}
    return ModelEntry(id=model.name, created=service.started, eft=eft, meta=meta)
