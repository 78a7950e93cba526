"""Verbs that talk to a model: ask, chat, transcribe."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ..core.console import AS_IT_IS
from ..errors import InputError, first_line
from .options import FourBit, Json, Model, err, load_assistant, print_json, print_transcript

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from ..inference.assistant import Chat
    from ..media.speech import Transcript


def ask(
    question: Annotated[str, typer.Argument(help="The question, in words; leave it out to ask by voice.")] = "",
    image: Annotated[list[Path] | None, typer.Option("--image", help="A picture; may be given several times.")] = None,
    audio: Annotated[
        list[Path] | None, typer.Option("--audio", help="A recording: the question itself, or context beside one.")
    ] = None,
    model: Model = "eden-tiny",
    max_new_tokens: Annotated[int, typer.Option(help="The longest answer, in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy; higher draws more freely.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Makes draws repeatable.")] = None,
    json_schema: Annotated[
        Path | None, typer.Option(help="A file with a JSON schema; the answer is JSON that fits it.")
    ] = None,
    four_bit: FourBit = False,
    as_json: Json = False,
) -> None:
    """Ask one question, about pictures or not, in writing or by voice; the answer streams."""
    from ..inference.sampling import Sampling
    from ..messages import Message

    assistant = load_assistant(model, four_bit)
    transcripts: list[str] = []

    def on_transcript(transcript: Transcript) -> None:
        transcripts.append(transcript.text)
        print_transcript(transcript)

    grammar = None if json_schema is None else assistant.grammar(_read_schema(json_schema))
    messages = assistant.transcribe_messages([Message.user(question, image or [], audio or [])], on_transcript)
    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, grammar=grammar)
    deltas = assistant.reply(messages, sampling)
    if as_json:
        spoken = {"transcripts": transcripts} if audio else {}
        print_json({"model": model, "question": question, **spoken, "answer": "".join(deltas)})
        return
    for delta in deltas:
        print(delta, end="", flush=True)
    print()


def _read_schema(path: Path) -> dict[str, Any]:
    try:
        schema = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        hint = "Give a file of JSON in UTF-8."
        raise InputError(f"no schema can be read ({first_line(error)})", where=str(path), hint=hint) from error
    if not isinstance(schema, dict):
        raise InputError("it holds no JSON schema", where=str(path), hint='Write an object, as {"type": "string"}.')
    return schema


def chat(model: Model = "eden-tiny", four_bit: FourBit = False) -> None:
    """A conversation in the terminal: `/image FILE` shows a picture, `/audio FILE` asks by voice; Ctrl-D ends."""
    conversation = load_assistant(model, four_bit).chat()
    err.print(
        "[dim]/image FILE shows a picture with your next question, /audio FILE asks by voice, "
        "/clear starts over, Ctrl-D ends[/]"
    )
    images: list[Path] = []
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # as in arguments: a file's name need be no text
    while sys.stdin:
        try:
            line = input("> ").strip() if sys.stdin.isatty() else next(sys.stdin).strip()
        except (EOFError, StopIteration, KeyboardInterrupt):
            return
        try:
            images = _chat_turn(conversation, line, images)
        except InputError as error:
            err.print(str(error), style="red", **AS_IT_IS)


def transcribe(
    files: Annotated[list[Path], typer.Argument(help="Recordings: wav, flac, mp3, ogg, m4a or webm, of any length.")],
    model: Annotated[
        str, typer.Option("-m", "--model", help="A Whisper: eden-tiny, a size as `small`, a hub id, or a folder.")
    ] = "eden-tiny",
    language: Annotated[str | None, typer.Option(help="As `en`; told in each window if not given.")] = None,
    as_srt: Annotated[bool, typer.Option("--srt", help="Print subtitles.")] = False,
    as_text: Annotated[bool, typer.Option("--text", help="Print the words alone (the default).")] = False,
    as_json: Json = False,
) -> None:
    """Turn speech into text, with times if wanted."""
    if as_srt + as_text + as_json > 1:
        raise InputError("more than one format", hint="Give one of --json, --srt and --text.")
    transcripts = []
    for path, transcript in _transcripts(files, model, language, err):
        transcripts.append({"file": str(path), **transcript.to_dict()})
        if as_srt:
            print(transcript.to_srt())
        elif not as_json and transcript.text:
            print(transcript.text)
    if as_json:
        print_json({"transcripts": transcripts})


def _transcripts(
    paths: Sequence[Path], model: str, language: str | None, console: Console
) -> Iterator[tuple[Path, Transcript]]:
    """Each recording with its transcript, in the order given.

    Raises:
        AudioError: a recording cannot be read.
        CheckpointError: the Whisper cannot be loaded.
        InputError: it does not know the language.
    """
    from ..core.console import progress
    from ..core.processes import peak_memory_mib
    from ..media.audio import UNLIMITED, announced_seconds
    from ..media.speech import Transcriber

    transcriber = Transcriber(model, language=language)
    for path in paths:
        started = time.monotonic()
        with progress(console) as bar:
            task = bar.add_task(f"transcribing {path.name}, seconds", total=announced_seconds(path) or None)
            transcript = transcriber.transcribe(
                path,
                max_bytes=UNLIMITED,
                max_seconds=UNLIMITED,
                on_progress=partial(_advance, bar, task),
            )
        seconds = time.monotonic() - started
        if not transcript.text:
            console.print(f"{path}: no speech was heard", **AS_IT_IS)
        console.print(
            f"{path.name}: {transcript.duration:,.1f} s of sound in {seconds:,.1f} s, "
            f"peak memory {peak_memory_mib():,.0f} MiB",
            style="dim",
            **AS_IT_IS,
        )
        yield path, transcript


def _advance(bar: Progress, task: TaskID, done: float) -> None:
    bar.update(task, completed=done)


def _chat_turn(conversation: Chat, line: str, images: list[Path]) -> list[Path]:
    """One line of a chat; returns the pictures that wait for the next question."""
    if not line:
        return images
    if line == "/clear":
        conversation.messages.clear()
        return []
    if line.startswith("/image "):
        path = Path(line.removeprefix("/image ").strip())
        from ..media.images import open_image

        open_image(path)
        return [*images, path]
    audio = [line.removeprefix("/audio ").strip()] if line.startswith("/audio ") else []
    for delta in conversation.stream("" if audio else line, images, audio, print_transcript):
        print(delta, end="", flush=True)
    print()
    return []
