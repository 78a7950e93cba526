"""OpenAI's API over HTTP.

    RequestMiddleware (key, host, size) -> route -> Service -> Engine

Source: https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from .. import __version__
from ..errors import EdenError
from .answers import ChatCompletion, ErrorResponse, Health, Model, ModelList, VerboseTranscription
from .completions import AnswerStream, ClientGone, begun, chunks, read_request, submit_answers, whole_answer
from .decision_schema import DecisionBody, DecisionResponse
from .decisions import decide
from .middleware import RequestMiddleware, error_response
from .responses import events, read_response_request, submit_response, whole_response
from .responses_schema import ResponseObject, ResponsesRequest
from .schema import ChatRequest, RequestError, check_model, to_request_error
from .service import Service
from .transcriptions import FORM_SCHEMA, HEARD_AS, transcribe

JSON_TYPE = "application/json"
CHAT, RESPONSES, DECISIONS = "/v1/chat/completions", "/v1/responses", "/v1/decisions"
TRANSCRIPTIONS = "/v1/audio/transcriptions"
FAULTS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": why}
    for status, why in {
        400: "the request is refused, and why",
        401: "the API key is missing or wrong",
        404: "there is no such model or path",
        408: "the body did not come in time",
        413: "the request is too large",
        415: "the body is of another type",
        503: "too many requests; Retry-After says when to try again",
    }.items()
}


def create_app(service: Service) -> FastAPI:
    """The API of a model. It closes the service when it shuts down."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(title="Eden", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.router.redirect_slashes = False  # its answers would name whatever host the request names
    _add_answers(app, service)
    _add_facts(app, service)
    app.add_exception_handler(EdenError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(ClientGone, _on_client_gone)
    methods = {
        route.path: frozenset(route.methods or ())
        for route in app.routes
        if isinstance(route, APIRoute) and "{" not in route.path
    }
    app.add_middleware(RequestMiddleware, service=service, methods=methods)
    if service.settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(service.settings.cors_origins),
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],  # clients tell about themselves in headers of their own
            allow_private_network=True,
            expose_headers=["Retry-After", "X-Request-Id"],
        )
    app.openapi = lambda: _openapi(app, service)  # type: ignore[method-assign]
    return app


def _add_answers(app: FastAPI, service: Service) -> None:
    """What asks the model."""

    @app.post(CHAT, response_model=ChatCompletion, responses=FAULTS, openapi_extra=_json_body(ChatRequest))
    async def chat_completions(http: Request) -> Response:
        """Answers a conversation of text, images and speech; with `stream` as server-sent events."""
        _check_type(http)
        with ExitStack() as stack:
            stack.enter_context(service.admitted())
            request = await read_request(service, await http.body())
            if not request.stream:
                return await whole_answer(service, http, await submit_answers(service, request))
            submitting = await begun(service, submit_answers(service, request))
            return AnswerStream(chunks(service, request, submitting), submitting, stack.pop_all().close)

    @app.post(RESPONSES, response_model=ResponseObject, responses=FAULTS, openapi_extra=_json_body(ResponsesRequest))
    async def responses(http: Request) -> Response:
        """Answers a conversation of text, images and speech; nothing of it is kept."""
        _check_type(http)
        with ExitStack() as stack:
            stack.enter_context(service.admitted())
            request = await read_response_request(service, await http.body())
            if not request.stream:
                (generation,) = await submit_response(service, request)
                return await whole_response(service, http, request, generation)
            submitting = await begun(service, submit_response(service, request))
            return AnswerStream(events(service, request, submitting), submitting, stack.pop_all().close)

    @app.post(DECISIONS, response_model=DecisionResponse, responses=FAULTS, openapi_extra=_json_body(DecisionBody))
    async def decisions(http: Request) -> Response:
        """How likely each answer of a closed set is, for questions about text and images."""
        _check_type(http)
        with service.admitted():
            return await decide(service, http)

    @app.post(
        TRANSCRIPTIONS,
        response_model=VerboseTranscription,
        response_model_exclude_unset=True,
        responses=FAULTS,
        openapi_extra={
            "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": FORM_SCHEMA}}},
        },
    )
    async def audio_transcriptions(http: Request) -> Response:
        """Turns speech into text."""
        with service.admitted():
            return await transcribe(service, http)


def _add_facts(app: FastAPI, service: Service) -> None:
    """What tells about it, and that there is nothing else; behind all other routes."""
    context = service.assistant.context_length
    model = Model(id=service.name, created=int(time.time()), max_model_len=context)

    @app.get("/v1/models", responses={401: FAULTS[401]})
    async def models() -> ModelList:
        """The one model that is served."""
        return ModelList(data=[model])

    @app.get("/v1/models/{name:path}", responses={401: FAULTS[401], 404: FAULTS[404]})
    async def one_model(name: str) -> Model:
        """The model that is served, if that is its name."""
        check_model(name, service.name)
        return model

    @app.get("/health", responses={503: {"model": Health, "description": "the model does not answer any more"}})
    async def health() -> Response:
        """Whether the model answers; asks no key."""
        engine = service.engine
        if engine.alive:
            return JSONResponse(Health(status="ok").model_dump())
        return JSONResponse(Health(status="failed" if engine.error else "closing").model_dump(), status_code=503)

    @app.get("/metrics", response_class=Response, responses={401: FAULTS[401]})
    async def metrics() -> Response:
        """Prometheus' text format."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.api_route("/v1/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False)
    async def unknown(path: str) -> Response:
        """Else the page would answer."""
        raise RequestError("there is no such path", code="not_found", status=404)


def _check_type(http: Request) -> None:
    if http.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON_TYPE:
        # Also what keeps other sites' forms out: a browser asks before it sends JSON elsewhere.
        raise RequestError(f"the body must be {JSON_TYPE}", code="unsupported_media_type", status=415)
    if (coding := http.headers.get("content-encoding", "identity").lower()) != "identity":
        raise RequestError(f"send the body as it is, not as {coding[:20]}", code="unsupported_media_type", status=415)


def _on_error(http: Request, error: Exception) -> Response:
    assert isinstance(error, EdenError)
    return error_response(to_request_error(error))


def _on_http_error(http: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_response(
        RequestError(str(error.detail), code="http_error", status=error.status_code, headers=error.headers)
    )


def _on_client_gone(http: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nginx's number; nobody reads it but the log


def _json_body(model: type[BaseModel]) -> dict[str, Any]:
    """The request as documented; it is read by Eden's own parser, whose errors have OpenAI's shape."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs")
    return {"requestBody": {"required": True, "content": {JSON_TYPE: {"schema": schema}}}}


def _openapi(app: FastAPI, service: Service) -> dict[str, Any]:
    """The document of `/openapi.json`: FastAPI's, with the bodies Eden reads itself, this model's name and the key."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for model in (ChatRequest, ResponsesRequest, DecisionBody):
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            document["components"]["schemas"] |= schema["$defs"]
        for path in (CHAT, RESPONSES, DECISIONS, TRANSCRIPTIONS):
            (body,) = document["paths"][path]["post"]["requestBody"]["content"].values()
            names = [service.name, *([HEARD_AS] if path == TRANSCRIPTIONS else [])]
            body["schema"]["properties"]["model"] = {"type": "string", "enum": names}
        if service.settings.api_key is not None:
            document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            document["security"] = [{"key": []}]
            document["paths"]["/health"]["get"]["security"] = []
        app.openapi_schema = document
    return app.openapi_schema
