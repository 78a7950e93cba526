"""The page's Sort tab, on Gradio: what is asked, the most doubtful picture, a key for each label, the labels as a file.

question and labels -> Desk (kept on the server, `eden.serve.sort`) -> one card of HTML, drawn anew after each key
"""

from __future__ import annotations

import base64
import html
import io
import logging
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import PIL.Image
from cachetools import TTLCache

from ..core.answers import AnswerSet
from ..data.class_folders import CLASS_QUESTION, PICTURES
from ..errors import EdenError, InputError
from ..inference.decisions import Decision, DecisionQuestion
from .conversation import UPLOADS_KEPT, in_a_sentence
from .service import Service
from .sort import LABELS, Desk, Pool

log = logging.getLogger("eden.serve")

KEYS = "123456789abcdefghijklmnopqrstuvwxyz"
"""Of the labels in their order; those beyond are clicked."""
DESKS_KEPT = 1024
LONGEST_SIDE = 1024
"""Of a picture as it is shown, in pixels."""
SMALL_SIDE = 256
"""A picture no larger is shown without loss, for it is scaled up."""
NAMED_FAULTY = 20
"""Pictures that cannot be opened, of which the page names no more."""
ON_LOAD = """
element.addEventListener("click", event => {
    const button = event.target.closest("button[data-act]");
    if (button) trigger("act", { act: button.dataset.act, answer: button.dataset.answer,
                                 picture: element.querySelector("[data-picture]").dataset.picture });
});
const press = event => {
    if (!element.isConnected) return document.removeEventListener("keydown", press);
    if (!element.offsetParent || event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
    if (event.target.closest("input, textarea, select, [contenteditable=true]")) return;
    const button = [...element.querySelectorAll("button")].find(button => button.dataset.key === event.key);
    if (button) { event.preventDefault(); button.click(); }
};
document.addEventListener("keydown", press);
"""
"""A key is a click, unless somebody writes; nothing is done while another tab of the page is open."""
WITH_NAMES = "(desk, files, names) => [desk, files, (files || []).map(file => file.orig_name)]"
"""What the files are called at home, from which Gradio takes some characters."""
SAVE = f"""text => {{
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], {{ type: "application/jsonl" }}));
    link.download = "{LABELS}";
    link.click();
    URL.revokeObjectURL(link.href);
}}"""


class SortTab:
    """The components, and what they do.

    Args:
        service: the model; its settings name the folder, if there is one.
    """

    def __init__(self, service: Service):
        self._service = service
        folder, limits = service.settings.sort_folder, service.settings.limits
        self._limits: dict[str, Any] = {"max_bytes": limits.image_bytes, "max_pixels": limits.image_pixels}
        self._shared = Pool(folder) if folder is not None else None
        self._desks: TTLCache[str, Desk] = TTLCache(DESKS_KEPT, UPLOADS_KEPT)
        self._lock = threading.Lock()
        calibration = service.assistant.checkpoint.calibration
        self._known = dict(calibration.questions) if calibration is not None else {}
        first = next(iter(self._known), CLASS_QUESTION)
        hint = "The same for each picture"
        with gr.Accordion("What is asked", open=True, elem_id="eden-asked") as self._setup:
            with gr.Row():
                self._question: Any = (
                    gr.Dropdown(
                        [*self._known],
                        value=first,
                        label="Question",
                        info=hint,
                        allow_custom_value=True,
                        elem_id="eden-question",
                    )
                    if len(self._known) > 1
                    else gr.Textbox(first, label="Question", info=hint, max_lines=1, elem_id="eden-question")
                )
                self._answers = gr.Textbox(
                    self._answers_of(first),
                    label="Labels",
                    info="With commas between them; empty is yes and no",
                    placeholder="yes, no",
                    max_lines=1,
                )
            with gr.Row():
                self._upload = gr.UploadButton(
                    "Add pictures", file_count="multiple", file_types=[*PICTURES], visible=self._shared is None
                )
                self._start = gr.Button("Start", variant="primary")
        self._card = gr.HTML(js_on_load=ON_LOAD, apply_default_css=False, elem_id="eden-sort")
        with gr.Row(elem_id="eden-sort-panels", equal_height=False):
            with gr.Accordion("By voice", open=False):
                self._voice = gr.Audio(
                    label="Say a label",
                    sources=["microphone"],
                    type="filepath",
                    editable=False,
                    buttons=[],
                    elem_id="eden-voice",
                )
            self._download = gr.Button(f"Download {LABELS}", size="md", elem_id="eden-labels")
        self._desk, self._token = gr.State(None), gr.BrowserState("", storage_key="eden-sort")
        self._names, self._text = gr.JSON(visible="hidden"), gr.Textbox(visible="hidden")

    def connect(self, tab: gr.Tab) -> None:
        """Says what happens when."""
        hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        at_once: dict[str, Any] = {**hidden, "queue": False}
        asked = [self._question, self._answers]
        tab.select(self._open, self._token, [self._token, self._desk, *asked, self._setup, self._card], **hidden)
        if len(self._known) > 1:
            self._question.input(self._choose, self._question, self._answers, **at_once)
        for started in (self._start.click, self._answers.submit):
            started(self._begin, [self._desk, *asked], [self._setup, self._card], **hidden)
        taken = [self._desk, self._upload, self._names]
        self._upload.upload(self._take, taken, self._card, js=WITH_NAMES, **hidden)
        self._card.act(self._act, self._desk, self._card, **at_once)
        self._voice.stop_recording(self._hear, [self._desk, self._voice], [self._voice, self._card], **hidden)
        saved = self._download.click(_text, self._desk, self._text, **at_once)
        saved.then(None, self._text, None, js=SAVE, **at_once)

    def _choose(self, question: str | None) -> Any:
        """The labels of another question, if the model knows it; what is typed for one that it does not stays."""
        return self._answers_of(question) if question in self._known else gr.skip()

    def _answers_of(self, question: str | None) -> str:
        """What stands in the field of the labels for a question that the model was trained on."""
        known = self._known.get(question or "")
        return _listed(known) if known is not None else ""

    def _asked(self, question: str | None, labels: str | None) -> DecisionQuestion:
        """What the fields say.

        Raises:
            InputError: there is no question, or the labels are no set of answers.
        """
        text, labels = (question or "").strip(), (labels or "").strip()
        if not text:
            raise InputError("no question", hint="Write what is asked of each picture.")
        known = self._known.get(text)
        if known is not None and labels in ("", self._answers_of(text)):
            return DecisionQuestion(text, known)
        return DecisionQuestion(text, AnswerSet.of(labels.split(",") if labels else None))

    def _open(self, token: str | None) -> Iterator[tuple[Any, ...]]:
        """The tab as this browser left it, after a reload as well."""
        with self._lock:
            desk = self._desks.get(str(token))
            if desk is None:
                token = secrets.token_urlsafe()
                desk = Desk(self._shared or Pool(**self._limits))
            self._desks[str(token)] = desk  # for another hour
        if (question := desk.question) is None:
            yield token, desk, gr.skip(), gr.skip(), gr.skip(), _card(desk)
            return
        for card in self._decide(desk):
            yield token, desk, question.text, _listed(question.answers), gr.update(open=False), card

    def _begin(self, desk: Desk | None, question: str | None, labels: str | None) -> Iterator[tuple[Any, str]]:
        if desk is None:
            return
        with _said_to(desk):
            asked = self._asked(question, labels)
            desk.pool.refresh()
            desk.ask(asked)
        if desk.note or not desk.pool.pictures:
            yield gr.skip(), _card(desk)
            return
        for card in self._decide(desk):
            yield gr.update(open=bool(desk.note)), card

    def _take(self, desk: Desk | None, files: Sequence[str] | None, names: Sequence[str] | None) -> Iterator[str]:
        """Uploaded pictures join the others."""
        if desk is None or self._shared is not None or not files or not names or len(files) != len(names):
            return
        most = self._service.settings.limits.sorted_pictures
        desk.note = ""
        for file, name in zip(files, names, strict=True):
            there = desk.pool.pictures
            name = Path(str(name)).name
            if name in there and there[name] != Path(file):  # what is sent again has the same place on the server
                desk.note = f"Another picture is named {name}: it was left out. Rename one, for labels go by names."
            elif name not in there and len(there) >= most:
                desk.note = (
                    f"These are more than {most:,} pictures: the rest was left out. Sort a folder on the server."
                )
            else:
                there[name] = Path(file)
        note = desk.note
        for card in self._decide(desk) if desk.question is not None else [_card(desk)]:
            desk.note = desk.note or note
            yield card

    def _decide(self, desk: Desk) -> Iterator[str]:
        """Cards while the model looks at the pictures, and the most doubtful one at the end."""
        question = desk.question
        assert question is not None
        with _said_to(desk):
            for done in desk.pool.decide(self._service, question):
                yield _waiting(question, done, len(desk.pool.pictures))
            if desk.current is None and desk.question == question:
                desk.advance()
        yield _card(desk)

    def _act(self, desk: Desk | None, event: gr.EventData) -> str:
        """A key or a click."""
        if desk is None:
            return ""
        said = {key: str(getattr(event, key, "")) for key in ("act", "answer", "picture")}
        with _said_to(desk):
            if said["act"] == "label":
                desk.label(said["picture"], said["answer"])
            elif said["act"] == "skip":
                desk.skip(said["picture"])
            elif said["act"] == "undo":
                desk.undo()
        return _card(desk)

    def _hear(self, desk: Desk | None, recording: str | None) -> tuple[None, str]:
        """A label by its name; nothing is chosen if the words are something else."""
        if desk is None:
            return None, ""
        picture = desk.current
        if recording and picture is not None:
            with _said_to(desk):
                with self._service.admitted():
                    words = self._service.transcribe(Path(recording).read_bytes()).text
                if (answer := desk.hear(words)) is not None:
                    desk.label(picture, answer)
                    desk.note = desk.note or f"Heard: {answer}."
                else:
                    desk.note = f"Heard “{words.strip()}”, which is none of the labels." if words else "Heard nothing."
        return None, _card(desk)


@contextmanager
def _said_to(desk: Desk) -> Iterator[None]:
    """What goes wrong is on the card, and the labels so far stay."""
    try:
        yield
    except EdenError as error:
        desk.note = in_a_sentence(error)
    except Exception:
        log.exception("the Sort tab could not do what was asked")
        desk.note = "Something went wrong on the server. Please try again."


def _listed(answers: AnswerSet) -> str:
    """Answers as they are typed."""
    return "" if answers.kind == "predicate" else ", ".join(answers.answers)


def _text(desk: Desk | None) -> str:
    return desk.pool.labels.text() if desk is not None else ""


def _plain(text: str) -> str:
    """Text as HTML; a name that is no UTF-8 in what is."""
    return html.escape(text.encode("utf-8", "replace").decode())


def _waiting(question: DecisionQuestion, done: int, number: int) -> str:
    bar = f'<progress max="{number}" value="{done}" aria-label="Looked at"></progress>'
    words = f"The model looks at the pictures: {done:,} of {number:,}"
    return f'<section><h2>{_plain(question.text)}</h2><div class="how-far">{bar}<span>{words}</span></div></section>'


def _card(desk: Desk) -> str:
    """All there is to see of a desk."""
    note = f'<p class="note" role="status">{_plain(desk.note)}</p>'
    if desk.question is None:
        number, folder = len(desk.pool.pictures), desk.pool.folder
        place = f" in {_plain(folder.resolve().name)}" if folder is not None else ""
        kept = f"They and their labels are kept for {UPLOADS_KEPT // 60} minutes."
        there = f"{number:,} picture{'s' * (number != 1)}{place}." if number else f"No pictures yet: add some. {kept}"
        return f'<section data-picture=""><p>{there}</p>{note}</section>'
    found = desk.picture()  # with its name: another tab of the same browser may go on meanwhile
    labelled, number = desk.progress
    bar = f'<progress max="{max(number, 1)}" value="{labelled}" aria-label="Labelled"></progress>'
    how_far = f'<div class="how-far">{bar}<span>{labelled:,} of {number:,}</span></div>'
    if found is None:
        where = f"{LABELS} is beside the pictures" if desk.pool.folder is not None else "download them below"
        work = f"<p>All {number:,} are labelled: {where}.</p>" if number else "<p>No picture is to be shown.</p>"
    else:
        name, picture = found
        decision = desk.pool.decided(desk.question)[name]
        assert isinstance(decision, Decision)
        work = _work(name, _as_data_url(picture), decision)
    undo = _button("undo", "ArrowLeft", "←", "Undo")
    skip = _button("skip", "ArrowRight", "→", "Skip") if found is not None else ""
    name = found[0] if found is not None else ""
    return (
        f'<section data-picture="{_plain(name)}"><h2>{_plain(desk.question.text)}</h2>{how_far}{work}'
        f'<div class="acts">{undo}{skip}{note}</div>{_faulty(desk)}</section>'
    )


def _work(name: str, address: str, decision: Decision) -> str:
    """The picture, and beside it the labels as buttons with their probabilities as bars."""
    buttons = "".join(
        _button("label", KEYS[place : place + 1], KEYS[place : place + 1], answer, probability)
        for place, (answer, probability) in enumerate(decision.probabilities.items())
    )
    sure = f"Confidence {decision.confidence:.2f}, {'calibrated' if decision.calibrated else 'not calibrated'}"
    sure += "; below the model's threshold" if decision.refused else ""
    return (
        f'<div class="work"><figure><img src="{address}" alt="{_plain(name)}"><figcaption>{_plain(name)}</figcaption>'
        f'</figure><div><div class="answers" role="group" aria-label="Labels">{buttons}</div>'
        f'<p class="sure">{sure}</p></div></div>'
    )


def _button(act: str, key: str, shown: str, text: str, probability: float | None = None) -> str:
    bar = answer = ""
    if probability is not None:
        answer = f' data-answer="{_plain(text)}"'
        bar = f'<span class="share" title="{probability:.6f}">{probability:.1%}</span>'
        bar += f'<span class="bar" style="width: {probability:.1%}"></span>'
    pressed = f' data-key="{key}" aria-keyshortcuts="{key}"' if key else ""
    return (
        f'<button type="button" data-act="{act}"{answer}{pressed}>{f"<kbd>{shown}</kbd>" if key else ""}'
        f'<span class="name">{_plain(text)}</span>{bar}</button>'
    )


def _faulty(desk: Desk) -> str:
    assert desk.question is not None
    found = desk.pool.faulty(desk.question)
    if not found:
        return ""
    named = [f"<li>{_plain(name)}: {_plain(what)}</li>" for name, what in list(found.items())[:NAMED_FAULTY]]
    more = f"<li>and {len(found) - NAMED_FAULTY:,} more</li>" if len(found) > NAMED_FAULTY else ""
    return f"<div class='faulty'>Cannot be opened, and skipped:<ul>{''.join(named)}{more}</ul></div>"


def _as_data_url(picture: PIL.Image.Image) -> str:
    """A picture no larger than it is shown; the browser opens no file of the server."""
    picture = picture.copy()
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    kind = "png" if max(picture.size) <= SMALL_SIDE else "jpeg"
    written = io.BytesIO()
    picture.save(written, kind)
    return f"data:image/{kind};base64,{base64.b64encode(written.getvalue()).decode()}"
