"""The web page: a chat with pictures and speech, on Gradio, in the same process and on the same engine as the API.

In a tab of its own pictures are sorted (`eden.serve.sort_page`).

    message box -> Conversation.ask (kept on the server) -> turns -> the chat on the screen

The chat is only ever written: a browser sends what is new, never what was said before.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from starlette.middleware import Middleware

from ..core.location import EDEN_TINY
from ..core.private_api import check_uploads, set_threads
from ..errors import InputError
from .conversation import AUDIO_SUFFIXES, UPLOADS_KEPT, Answers, Conversation, Turn, is_recording
from .gradio_middleware import GradioMiddleware
from .service import DEFAULT_NEW_TOKENS, Service
from .sort_page import SortTab

HERE = Path(__file__).parent
EXAMPLES = HERE / "examples"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
SPARE_THREADS = 16
"""For uploads and buttons, beside the threads in which answers are waited for."""
HEARD, FAILED, NOTE = "Heard", "Not answered", "Note"
ENDINGS = {
    "length": "The longest answer ends here; the panel below allows a longer one.",
    "deadline": "The answer took too long and ends here. Ask again in a moment.",
}
IDLE: dict[str, Any] = {"submit_btn": True, "stop_btn": False}
BUSY: dict[str, Any] = {"submit_btn": False, "stop_btn": True}


def build_page(service: Service, *, gpu: Callable[[Any], Any] | None = None) -> gr.Blocks:
    """The page as Gradio blocks.

    Args:
        service: the model.
        gpu: decorates the generator that computes an answer, as `spaces.GPU` on Hugging Face's ZeroGPU.
    """
    with gr.Blocks(
        title=f"Eden · {service.name}",
        analytics_enabled=False,
        fill_height=True,
        delete_cache=(UPLOADS_KEPT // 6, UPLOADS_KEPT),
    ) as blocks:
        name = html.escape(service.name)
        gr.HTML(
            f"<header><h1>Eden</h1><p>Show <b>{name}</b> a picture and ask about it, "
            "in writing or by voice.</p></header>",
            elem_id="eden-header",
        )
        if gpu is None:
            with gr.Tabs(elem_id="eden-tabs"):
                with gr.Tab("Chat"):
                    _Page(service, gpu).connect(blocks)
                with gr.Tab("Sort") as tab:
                    SortTab(service).connect(tab)
        else:  # a GPU that is lent for an answer is not there for a folder of pictures
            _Page(service, gpu).connect(blocks)
        gr.HTML(
            f"<footer>A conversation may have {service.settings.limits.in_words()}. "
            f"Uploads are kept for {UPLOADS_KEPT // 60} minutes. {name} can be wrong.</footer>",
            elem_id="eden-footer",
        )
    people = service.settings.max_running + service.settings.max_waiting
    blocks.queue(max_size=people, default_concurrency_limit=people, api_open=False)
    set_threads(blocks, people + SPARE_THREADS)
    return blocks


def mount_page(app: FastAPI, service: Service, path: str = "/") -> FastAPI:
    """Puts the page into an app that has the API."""
    blocks = build_page(service)
    check_uploads(blocks)
    return gr.mount_gradio_app(app, blocks, path=path, root_path=service.settings.root_path, **_options(service))


def launch_page(service: Service, *, gpu: Callable[[Any], Any] | None = None, **launch_options: Any) -> None:
    """Serves the page alone, as on Hugging Face Spaces."""
    blocks = build_page(service, gpu=gpu)
    blocks.launch(max_threads=blocks.max_threads, **_options(service), **launch_options)


def _options(service: Service) -> dict[str, Any]:
    limits = service.settings.limits
    return {
        "max_file_size": max(limits.image_bytes, limits.audio_bytes),
        "app_kwargs": {"middleware": [Middleware(GradioMiddleware, limits=limits)]},
        "ssr_mode": False,
        "enable_monitoring": False,
        "run_history": False,
        "show_error": False,
        **_look(),
    }


class _Page:
    """The components, and what they do."""

    def __init__(self, service: Service, gpu: Callable[[Any], Any] | None):
        self._service = service
        self._answers = Answers(service, gpu)
        self._examples = _examples(service)
        self._open: dict[str, Conversation] = {}
        """Those with an answer on its way, by session."""
        self._chat = _chat(self._examples)
        self._box = gr.MultimodalTextbox(
            label="Message",
            show_label=False,
            container=False,
            sources=["upload", "microphone"],
            file_count="multiple",
            file_types=[*IMAGE_SUFFIXES, *sorted(AUDIO_SUFFIXES)],
            placeholder="Ask, or drop a picture",
            max_plain_text_length=20_000,
            max_lines=8,
            elem_id="eden-box",
            **IDLE,
        )
        with gr.Row(elem_id="eden-panels", equal_height=False):
            with gr.Accordion("Sampling", open=False):
                self._options = _sliders(service)
            with gr.Accordion("Camera", open=False):
                self._camera = gr.Image(
                    label="Camera",
                    show_label=False,
                    sources=["webcam"],
                    type="filepath",
                    format="jpeg",
                    elem_id="eden-camera",
                    height=320,
                )
        self._conversation = gr.State(Conversation())

    def connect(self, blocks: gr.Blocks) -> None:
        """Says what happens when."""
        hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        at_once: dict[str, Any] = {**hidden, "queue": False}
        inputs, outputs = [self._conversation, self._box, *self._options], [self._chat, self._box]
        # Gradio sends what a generator gave last once more when it has ended: the page is idle only after that.
        for asked, ask in (
            (self._box.submit, self._submit),
            (self._chat.example_select, self._ask_example),
            (self._chat.retry, self._retry),
        ):
            asked(ask, inputs, outputs, **hidden).then(_settle, self._conversation, outputs, **at_once)
        # No `cancels`: what is stopped ends by itself, and says so.
        self._box.stop(_stop, self._conversation, None, **at_once)
        # No outputs: the browser empties the chat itself, and may have gone on when an answer to it comes.
        self._chat.clear(_clear, self._conversation, None, **at_once)
        self._camera.input(_add_photo, [self._camera, self._box], [self._camera, self._box], **hidden)
        blocks.unload(self._leave)

    def _submit(
        self, request: gr.Request, conversation: Conversation, message: dict[str, Any], *options: Any
    ) -> Iterator[Any]:
        if message["text"].strip() or message["files"]:
            box = gr.update(value={"text": "", "files": []}, **BUSY)
            yield from self._ask(conversation, message["text"], message["files"], options, request, box)

    def _ask_example(
        self,
        request: gr.Request,
        chosen: gr.SelectData,
        conversation: Conversation,
        message: dict[str, Any],
        *options: Any,
    ) -> Iterator[Any]:
        text, files = self._examples[int(chosen.index)]  # what the browser says of it besides its number is not read
        yield from self._ask(conversation, text, files, options, request, gr.update(**BUSY))

    def _retry(
        self, request: gr.Request, conversation: Conversation, message: dict[str, Any], *options: Any
    ) -> Iterator[Any]:
        turn = conversation.take_back()
        if turn is not None:
            yield from self._ask(conversation, turn.text, turn.files, options, request, gr.update(**BUSY))

    def _ask(
        self,
        conversation: Conversation,
        text: str,
        files: Sequence[str],
        options: Sequence[Any],
        request: gr.Request,
        box: Any,
    ) -> Iterator[Any]:
        """Chat and message box, each time the answer has grown."""
        session = str(request.session_hash)
        self._open[session] = conversation
        for turn in conversation.ask(self._service, self._answers.write, text, files, partial(_sampling, *options)):
            yield _shown(conversation), box
            box = gr.skip()
            if not conversation.ends_with(turn):  # cleared, or something else was asked
                break
        if not conversation.is_busy:
            self._open.pop(session, None)

    def _leave(self, request: gr.Request) -> None:
        """The tab was closed or loaded again: nobody reads the answer any more."""
        conversation = self._open.pop(str(request.session_hash), None)
        if conversation is not None:
            conversation.stop()


def _sampling(temperature: float, top_p: float, longest: int, seed: str | None) -> dict[str, Any]:
    """The panel's values.

    Raises:
        InputError: the seed is no number.
    """
    try:
        number = int(seed) if seed and seed.strip() else None
    except ValueError:
        raise InputError("the seed is not a whole number", hint="Change it, or leave it empty.") from None
    return {"temperature": temperature, "top_p": top_p, "max_new_tokens": longest, "seed": number}


def _stop(conversation: Conversation) -> None:
    conversation.stop()


def _settle(conversation: Conversation) -> tuple[Any, Any]:
    """Chat and message box after an answer's end; what was done in between stays as it is."""
    chat = gr.skip() if conversation.turns else []
    return chat, gr.skip() if conversation.is_busy else gr.update(**IDLE)


def _clear(conversation: Conversation) -> None:
    conversation.clear()


def _add_photo(photo: str | None, message: dict[str, Any] | None) -> tuple[None, dict[str, Any]]:
    """A photo goes to the question that is being written, and the camera is ready for the next."""
    message = message or {}
    files = [*message.get("files", ()), *([photo] if photo else ())]
    return None, {"text": message.get("text") or "", "files": files}


def _shown(conversation: Conversation) -> list[gr.ChatMessage]:
    return [message for turn in conversation.turns for message in _turn(turn)]


def _turn(turn: Turn) -> Iterator[gr.ChatMessage]:
    """A turn as the chat shows it; the page's own words have a title or are set apart."""
    files: list[Any] = [
        {"path": file, "alt_text": "Recording" if is_recording(file) else "Picture"} for file in turn.files
    ]
    yield gr.ChatMessage([*files, *([_as_html(turn.text)] if turn.text else [])], role="user")
    for words in turn.transcripts:
        yield gr.ChatMessage(_as_html(words or "(nothing)"), metadata={"title": HEARD})
    if turn.answer:
        yield gr.ChatMessage(_as_html(turn.answer))
    if turn.failure:
        yield gr.ChatMessage(_as_html(turn.failure), metadata={"title": FAILED})
    elif turn.ended in ENDINGS:
        yield gr.ChatMessage(ENDINGS[turn.ended], metadata={"title": NOTE})
    elif turn.ended and not turn.answer:
        yield gr.ChatMessage(
            "Stopped." if turn.ended == "cancelled" else "The model had nothing to say.", metadata={"title": NOTE}
        )


def _as_html(text: str) -> str:
    """Text that shows as it is where Gradio takes HTML; only what would be markup is changed, for it can be copied."""
    return re.sub(r"&(?=#?\w+;)", "&amp;", text).replace("<", "&lt;")


def _examples(service: Service) -> list[tuple[str, tuple[str, ...]]]:
    """Text and files of questions that the model can answer; a model of one's own knows other pictures."""
    if service.assistant.checkpoint.name != EDEN_TINY:
        return [("What can you do?", ())]
    gr.set_static_paths([EXAMPLES])
    files = [str(EXAMPLES / f"scene-{number}.png") for number in (1, 2, 3)]
    return [
        ("Describe the picture.", (files[0],)),
        ("What colour is the star?", (files[1],)),
        ("", (files[2], str(EXAMPLES / "question.mp3"))),
    ]


def _sliders(service: Service) -> list[gr.components.Component]:
    longest = min(DEFAULT_NEW_TOKENS, service.assistant.context_length - 1)
    return [
        gr.Slider(0, 2, 0, step=0.05, label="Temperature", info="0 always takes the likeliest word"),
        gr.Slider(0.05, 1, 1, step=0.05, label="Top p", info="Draws from the likeliest words of this share"),
        gr.Slider(1, longest, min(256, longest), step=1, label="Longest answer", info="In tokens", precision=0),
        # Not a Number: Gradio shows an empty one as 0, and sends that.
        gr.Textbox("", max_lines=1, label="Seed", info="The same seed draws the same answer; empty is chance"),
    ]


def _chat(examples: Sequence[tuple[str, Sequence[str]]]) -> gr.Chatbot:
    # No Markdown: a model's words could load an image from elsewhere, and tell with its address what was said here.
    return gr.Chatbot(
        show_label=False,
        label="Conversation",
        height=None,
        min_height=320,
        scale=1,
        allow_file_downloads=False,
        examples=[
            {"text": text, "display_text": text or "Ask by voice", "files": list(files)} for text, files in examples
        ],
        render_markdown=False,
        sanitize_html=True,
        feedback_options=None,
        buttons=["copy"],
        layout="bubble",
        placeholder="<h2>What is in the picture?</h2><p>Drop one below, or try one of these.</p>",
        elem_id="eden-chat",
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
