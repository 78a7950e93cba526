"""`POST /v1/audio/transcriptions`: a recording as a form, its words as JSON, text or subtitles.

Source: https://platform.openai.com/docs/api-reference/audio/createTranscription
"""

from __future__ import annotations

from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

from ..errors import EdenError
from ..media.speech import Transcript
from .answers import Transcription, TranscriptionSegment, VerboseTranscription
from .schema import RequestError, check_model, to_request_error
from .service import Service

SUPPORTED = {
    "response_format": ("json", "text", "srt", "verbose_json"),
    "temperature": ("0",),
    "stream": ("false",),
    "timestamp_granularities[]": ("segment",),
}
"""Fields with the values they may have, the default first; a field that is empty is not there."""
FIELDS = ("file", "model", "language", *SUPPORTED)
HEARD_AS = "whisper-1"
"""OpenAI's name for the job; clients that cannot be told another use it."""

FORM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["file", "model"],
    "additionalProperties": False,
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "model": {"type": "string", "description": f"the served model's name, or {HEARD_AS}"},
        "language": {"type": "string", "description": "a code as `en`"},
        "response_format": {"type": "string", "enum": list(SUPPORTED["response_format"])},
        "temperature": {"type": "number", "enum": [0], "description": "speech is heard greedily"},
        "stream": {"type": "boolean", "enum": [False]},
        "timestamp_granularities[]": {"type": "string", "enum": ["segment"]},
    },
}


async def transcribe(service: Service, http: Request) -> Response:
    """Hears one recording.

    Raises:
        RequestError: the form is not what it should be, or the recording cannot be heard.
    """
    if not http.headers.get("content-type", "").startswith("multipart/form-data"):
        raise RequestError("the body must be multipart/form-data", code="unsupported_media_type", status=415)
    try:
        async with http.form(max_files=1, max_fields=16, max_part_size=4096) as form:
            source, response_format, language = await _read(service, form)
    except (MultiPartException, HTTPException) as error:
        raise RequestError(
            f"the form cannot be read ({getattr(error, 'message', None) or getattr(error, 'detail', '')})"[:200],
            code="invalid_form",
        ) from None
    try:
        transcript = await service.in_thread(service.transcribe, source, language, speech=True)
    except EdenError as error:
        raise to_request_error(
            error, param="language" if error.fault.kind == "unsupported_language" else "file"
        ) from error
    return _answer(transcript, response_format)


async def _read(service: Service, form: FormData) -> tuple[bytes, str, str | None]:
    """The recording's bytes, the format of the answer, and the language."""
    form = FormData([(name, value) for name, value in form.multi_items() if value != ""])
    for name in form:
        if name not in FIELDS:
            raise RequestError("not supported by this server", param=name[:100], code="unsupported_parameter")
        if len(form.getlist(name)) > 1:
            raise RequestError("given more than once", param=name)
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise RequestError("a recording is needed", param="file", code="missing_file")
    words: dict[str, str] = {name: value for name, value in form.items() if isinstance(value, str)}
    if (model := words.get("model", "")) != HEARD_AS:
        check_model(model, service.name)
    words["temperature"] = words.get("temperature", "").strip("0.") or "0"
    for name, supported in SUPPORTED.items():
        if words.setdefault(name, supported[0]).lower() not in supported:
            only = " or ".join(supported)
            raise RequestError(f"only {only} is supported", param=name, code="unsupported_parameter")
    limit = service.settings.limits.audio_bytes
    if (file.size or 0) > limit:
        raise RequestError(
            f"the recording has more than {limit:,} bytes", param="file", code="media_too_large", status=413
        )
    return await file.read(), words["response_format"].lower(), words.get("language")


def _answer(transcript: Transcript, response_format: str) -> Response:
    if response_format == "text":
        return PlainTextResponse(f"{transcript.text}\n")
    if response_format == "srt":
        return PlainTextResponse(transcript.to_srt())
    if response_format == "json":
        return JSONResponse(Transcription(text=transcript.text).model_dump())
    segments = [
        TranscriptionSegment(id=index, start=segment.start, end=segment.end, text=segment.text)
        for index, segment in enumerate(transcript.segments)
    ]
    verbose = VerboseTranscription(
        text=transcript.text, language=transcript.language, duration=transcript.duration, segments=segments
    )
    return JSONResponse(verbose.model_dump())
