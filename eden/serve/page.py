"""The web page: a chat with pictures and speech, on Gradio, in the same process and on the same engine as the API."""

from __future__ import annotations

import html
import logging
import mimetypes
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI

from ..audio import FORMATS as AUDIO_FORMATS
from ..errors import EdenError, InputError, OverloadError
from ..files import EDEN_TINY
from ..generation import Generation
from ..messages import Audio, Image, Message, Part, Text
from .service import Service
from .settings import Limits

log = logging.getLogger("eden.serve")

HERE = Path(__file__).parent
HEARD, FAILED = "Heard", "Not answered"
"""Titles of what the page says itself; none of it is part of the conversation that the model reads."""
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
UPLOADS_KEPT = 3600
"""Seconds after which uploaded files are removed."""
LONGEST_ANSWER = 1024

Reply = list[gr.ChatMessage]
Answer = Callable[..., Iterator[Reply]]


def build_page(service: Service, *, gpu: Callable[[Answer], Answer] | None = None) -> gr.Blocks:
    """The page as Gradio blocks.

    Args:
        service: the model.
        gpu: decorates what computes the answers, as `spaces.GPU` on Hugging Face's ZeroGPU.
    """

    def answer(message: dict[str, Any], history: list[dict[str, Any]], *options: Any) -> Iterator[Reply]:
        yield from _answer(service, message, history, *options)

    settings = service.settings
    people = settings.max_running + settings.max_waiting
    examples: Any = _examples(service)
    with gr.Blocks(title=f"Eden · {service.name}", analytics_enabled=False, delete_cache=(600, UPLOADS_KEPT)) as page:
        gr.HTML(
            f"<header><h1>Eden</h1><p>Show <b>{html.escape(service.name)}</b> a picture and ask about it, "
            "in writing or by voice.</p></header>",
            elem_id="eden-header",
        )
        box = gr.MultimodalTextbox(
            sources=["upload", "microphone"],
            file_count="multiple",
            file_types=[*IMAGE_SUFFIXES, *(f".{name}" for name in AUDIO_FORMATS)],
            placeholder="Ask, or drop a picture or a recording",
            max_plain_text_length=20_000,
            stop_btn=True,
            elem_id="eden-box",
            render=False,
        )
        with gr.Accordion("Sampling", open=False, render=False) as sampling:
            options: Any = [
                gr.Slider(0, 2, 0, step=0.05, label="Temperature", info="0 always takes the likeliest word"),
                gr.Slider(0.05, 1, 1, step=0.05, label="Top p", info="Draws from the likeliest words of this share"),
                gr.Slider(1, min(LONGEST_ANSWER, service.assistant.context_length - 1), 256, step=1,
                          label="Longest answer", info="In tokens"),
                gr.Number(None, precision=0, label="Seed", info="The same seed draws the same answer; empty is chance"),
            ]  # fmt: skip
        gr.ChatInterface(
            gpu(answer) if gpu is not None else answer,
            multimodal=True,
            chatbot=_chatbot(),
            textbox=box,
            additional_inputs=options,
            additional_inputs_accordion=sampling,
            examples=[[example] for example in examples],
            example_labels=[example["text"] or "Ask by voice" for example in examples],
            concurrency_limit=people,
            api_visibility="private",
            show_progress="hidden",
            fill_height=True,
        )
        sampling.render()
        with gr.Accordion("Camera", open=False):
            camera = gr.Image(sources=["webcam"], type="filepath", show_label=False, elem_id="eden-camera", height=320)
        camera.change(_add_photo, [camera, box], [camera, box], api_visibility="private", show_progress="hidden")
        gr.HTML(f"<footer>At most {settings.limits.in_words()}.</footer>", elem_id="eden-footer")
    page.queue(max_size=people, api_open=False)
    return page


def mount_page(app: FastAPI, service: Service, path: str = "/") -> FastAPI:
    """Puts the page into an app that has the API."""
    limits = service.settings.limits
    return gr.mount_gradio_app(
        app,
        build_page(service),
        path=path,
        max_file_size=max(limits.image_bytes, limits.audio_bytes),
        ssr_mode=False,
        enable_monitoring=False,
        show_error=False,
        **_look(),
    )


def launch_page(service: Service, *, gpu: Callable[[Answer], Answer] | None = None, **launch_options: Any) -> None:
    """Serves the page alone, as on Hugging Face Spaces."""
    limits = service.settings.limits
    build_page(service, gpu=gpu).launch(
        max_file_size=max(limits.image_bytes, limits.audio_bytes),
        ssr_mode=False,
        enable_monitoring=False,
        show_error=False,
        **_look(),
        **launch_options,
    )


def _answer(
    service: Service,
    message: dict[str, Any],
    history: list[dict[str, Any]],
    temperature: float = 0.0,
    top_p: float = 1.0,
    longest: int = 256,
    seed: int | None = None,
) -> Iterator[Reply]:
    """What was heard, then the answer while it grows, or why there is none."""
    said: Reply = []
    try:
        with service.admitted():
            text = message.get("text") or ""
            parts = (*map(_file, message.get("files", ())), *([Text(text)] if text.strip() else ()))
            asked = Message("user", parts)
            conversation = [*_conversation(history), asked]
            _check_number(conversation, service.settings.limits)
            for recording in asked.audio:
                words = service.transcribe(recording.source).text
                said.append(_note(HEARD, words or "(nothing)"))
                yield said
            ready = service.open_images(service.hear(conversation))
            (generation,) = service.submit(
                ready, max_new_tokens=int(longest), temperature=temperature, top_p=top_p, seed=seed
            )
            with closing(_growing(service, generation)) as texts:
                for text in texts:
                    yield [*said, gr.ChatMessage(_as_html(text))]
            if generation.finish_reason == "deadline":
                raise OverloadError("the answer took too long", cure="Ask again in a moment.")
    except EdenError as error:
        yield [*said, _note(FAILED, _sentence(error))]
    except Exception:
        log.exception("the page failed")
        yield [*said, _note(FAILED, "Something went wrong on the server. Try again, or start over.")]


def _growing(service: Service, generation: Generation) -> Generator[str, None, None]:
    """The text so far, each time there is more. Closing it ends the answer at its next token."""
    text = ""
    try:
        for piece in generation:
            text += piece.text
            yield text
        if not text:
            yield "(an empty answer)"
    finally:
        generation.cancel()
        service.metrics.count_answer(generation)


def _conversation(history: Sequence[dict[str, Any]]) -> list[Message]:
    """The turns that the model reads: no notes of the page's own, and no questions that have no answer."""
    turns: list[Message] = []
    for turn in history:
        title = (turn.get("metadata") or {}).get("title")
        if turn["role"] == "user":
            if turns and turns[-1].role == "user":
                turns.pop()
            turns.append(_turn(turn))
        elif title == FAILED:
            if turns and turns[-1].role == "user":
                turns.pop()
        elif title is None and turns and turns[-1].role == "user":
            turns.append(Message.assistant(_from_html(_turn(turn).text)))
    return turns[:-1] if turns and turns[-1].role == "user" else turns


def _turn(turn: dict[str, Any]) -> Message:
    """A turn as Gradio's history has it."""
    parts = [
        Text(part["text"]) if part["type"] == "text" else _file(part["file"]["path"])
        for part in turn["content"]
        if part["type"] in ("text", "file")
    ]
    return Message(turn["role"], tuple(parts))


def _file(file: str | dict[str, Any]) -> Part:
    path = file if isinstance(file, str) else file["path"]
    kind = mimetypes.guess_type(path)[0] or ""
    if kind.startswith(("audio/", "video/")):  # browsers record into containers that are made for videos, too
        return Audio(Path(path).read_bytes())
    return Image(path)


def _check_number(conversation: Sequence[Message], limits: Limits) -> None:
    for what, number, limit in (
        ("pictures", sum(len(message.images) for message in conversation), limits.images),
        ("recordings", sum(len(message.audio) for message in conversation), limits.recordings),
        ("turns", len(conversation), limits.messages),
    ):
        if number > limit:
            raise InputError(f"the conversation has {number} {what}, the limit is {limit}", cure="Start over.")


def _sentence(error: EdenError) -> str:
    """An error as people read it; where it was found is a path on the server, and nobody's business."""
    text = f"{error.what}. {error.cure}" if error.cure else f"{error.what}."
    return text[:1].upper() + text[1:]


def _note(title: str, text: str) -> gr.ChatMessage:
    return gr.ChatMessage(_as_html(text), metadata={"title": title})


def _as_html(text: str) -> str:
    """Text that shows as it is where Gradio takes HTML; only what would be markup is changed, for it can be copied."""
    return re.sub(r"&(?=#?\w+;)", "&amp;", text).replace("<", "&lt;")


def _from_html(text: str) -> str:
    return re.sub(r"&amp;(?=#?\w+;)", "&", text.replace("&lt;", "<"))


def _add_photo(photo: str | None, message: dict[str, Any] | None) -> tuple[None, dict[str, Any]]:
    """A photo goes to the question that is being written, and the camera is ready for the next."""
    message = message or {}
    files = [*message.get("files", ()), *([photo] if photo else ())]
    return None, {"text": message.get("text") or "", "files": files}


def _examples(service: Service) -> list[dict[str, Any]]:
    """Questions that the model can answer, one click away; a model of one's own knows other pictures."""
    if service.assistant.checkpoint.name != EDEN_TINY:
        return [{"text": "What can you do?", "files": []}]
    pictures = [str(HERE / "examples" / f"scene-{number}.png") for number in (1, 2, 3)]
    return [
        {"text": "Describe the picture.", "files": pictures[:1]},
        {"text": "What colour is the square?", "files": pictures[1:2]},
        {"text": "", "files": [pictures[2], str(HERE / "examples" / "question.wav")]},
    ]


def _chatbot() -> gr.Chatbot:
    # No Markdown: a model's words could load an image from elsewhere, and tell with its address what was said here.
    return gr.Chatbot(
        show_label=False,
        label="Conversation",
        height="62vh",
        min_height=320,
        render_markdown=False,
        sanitize_html=True,
        feedback_options=None,
        buttons=["copy"],
        layout="bubble",
        placeholder="<h2>What is in the picture?</h2><p>Drop one below, or try one of these.</p>",
        elem_id="eden-chat",
        render=False,
    )


def _look() -> dict[str, Any]:
    """Theme and style: system fonts and nothing from other hosts."""
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    theme = gr.themes.Base(
        primary_hue=gr.themes.colors.emerald,
        secondary_hue=gr.themes.colors.emerald,
        neutral_hue=gr.themes.colors.stone,
        radius_size=gr.themes.sizes.radius_lg,
        font=fonts,
        font_mono=["ui-monospace", "Consolas", "monospace"],
    )
    return {
        "theme": theme,
        "css_paths": HERE / "page.css",
        "favicon_path": str(HERE / "favicon.svg"),
        "footer_links": [],
    }
