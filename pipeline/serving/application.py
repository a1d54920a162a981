"""The HTTP interface of a service, as an ASGI application: uvicorn runs it on one machine, Ray Serve on a cluster."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from pipeline.serving.service import Service
from yolov7.detect.messages import Answer
from yolov7.errors import DataError, SettingError, one_line

_BODY_SECONDS = 30.0  # for a client to send its request
_DISCARDED = 4  # times the largest body that is read and discarded before a body is refused
_SENTENCE = 300  # characters of a message to a client
_Share = Annotated[float | None, Query(ge=0, le=1)]

_PROBLEM = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
_PROBLEMS = {
    400: "No image in the request, an image that cannot be decoded or is too large, or a threshold out of range.",
    408: "The request did not arrive completely in time.",
    413: "The body is too large.",
    500: "An error of the service; its log has the details.",
    503: "Too many requests are in progress; the header Retry-After states when to try again.",
}
_FILE = {"schema": {"type": "string", "format": "binary"}}
_PIXELS = {"type": "array", "items": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}}
_BODY = {
    "requestBody": {
        "required": True,
        "description": "An image file, a form with one file, or JSON with base64 text or pixels (RGB, 0..255).",
        "content": {
            "image/*": _FILE,
            "application/octet-stream": _FILE,
            "multipart/form-data": {
                "schema": {"type": "object", "required": ["image"], "properties": {"image": _FILE["schema"]}}
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "additionalProperties": False,
                    "properties": {"image": {"oneOf": [{"type": "string", "format": "byte"}, _PIXELS]}},
                }
            },
        },
    }
}


def make_application(service: Service) -> FastAPI:
    """Return the HTTP interface of a service.

    Args:
        service: The service; the caller closes it.

    Returns:
        An application with `POST /predict`, `GET /health`, `GET /metadata`, and its description at `/docs` and
        `/openapi.json`. Every error is JSON with one sentence, `{"error": "..."}`.
    """
    application = FastAPI(
        title="YOLOv7 object detection",
        version=service.metadata["version"] or "unknown",
        description=f"Detects objects of {len(service.metadata['class_names'])} classes. See `GET /metadata`.",
    )
    in_progress = 0

    @application.post(
        "/predict",
        summary="Detect the objects in an image",
        response_model=Answer,
        responses={
            status: {"description": text, "content": {"application/json": {"schema": _PROBLEM}}}
            for status, text in _PROBLEMS.items()
        },
        openapi_extra=_BODY,
    )
    async def predict(request: Request, confidence: _Share = None, iou: _Share = None) -> JSONResponse:
        nonlocal in_progress
        if in_progress >= service.settings.max_queue:
            await _discard_body(request)
            return _problem(503, f"{in_progress} requests are in progress; try again later", {"Retry-After": "1"})
        changes = {"confidence": confidence, "iou": iou}
        nms = service.settings.nms.model_copy(update={name: v for name, v in changes.items() if v is not None})
        in_progress += 1
        try:
            body = await _read_body(request, limit=service.settings.max_body_megabytes << 20)
            content_type = request.headers.get("content-type", "")
            return JSONResponse(await service.answer(body, content_type=content_type, nms=nms))
        except (DataError, SettingError) as error:
            return _problem(400, error)
        finally:
            in_progress -= 1

    @application.get("/health", summary="State whether the service can answer")
    async def health() -> JSONResponse:
        if service.is_healthy:
            return JSONResponse({"status": "ok"})
        return _problem(503, "the last images could not be processed; the log of the service has the details")

    @application.get("/metadata", summary="Describe the model, its classes and the limits")
    async def metadata() -> dict[str, Any]:
        return dict(service.metadata)

    _answer_errors_in_one_sentence(application)
    return application


def _answer_errors_in_one_sentence(application: FastAPI) -> None:
    @application.exception_handler(RequestValidationError)
    async def refuse(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return _problem(400, f"{first['loc'][-1]}={first.get('input')}: {first['msg']}")

    @application.exception_handler(HTTPException)
    async def explain(_: Request, error: HTTPException) -> JSONResponse:
        return _problem(error.status_code, error.detail, error.headers)

    @application.exception_handler(Exception)
    async def conceal(_: Request, __: Exception) -> JSONResponse:
        return _problem(500, "an error of the service; its log has the details")


async def _read_body(request: Request, *, limit: int) -> bytes:
    """Read a body; raise HTTPException if it is too large or does not arrive."""
    stated = request.headers.get("content-length", "")
    is_too_large = stated.isdecimal() and int(stated) > limit
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                is_too_large = is_too_large or size > limit
                if is_too_large:  # read on, because most clients read the answer only after they have sent the body
                    parts.clear()
                else:
                    parts.append(part)
                if size > _DISCARDED * limit:
                    break
    except TimeoutError:
        seconds = f"{_BODY_SECONDS:g} seconds"
        raise HTTPException(408, f"the body did not arrive in {seconds}", headers={"Connection": "close"}) from None
    except ClientDisconnect:
        raise HTTPException(400, "the connection ended before the body was complete") from None
    if is_too_large:
        raise HTTPException(413, f"the body has more than {limit >> 20} megabytes")
    return b"".join(parts)


async def _discard_body(request: Request) -> None:
    """Read a body without keeping it, because most clients read the answer only after they have sent the body."""
    with suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(_BODY_SECONDS):
            async for _ in request.stream():
                pass


def _problem(status: int, sentence: object, headers: Any = None) -> JSONResponse:
    return JSONResponse({"error": one_line(sentence, limit=_SENTENCE)}, status, headers)
