"""Whether llama.cpp answers as Eden does: both are asked about the same pictures, one after the other, greedily."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from typing import Any

import PIL.Image
import torch

from .. import checkpoint as checkpoints
from ..core.console import written_size
from ..data.class_folders import pictures_in
from ..errors import InputError, RunError
from ..inference.assistant import Assistant
from ..inference.sampling import Sampling
from ..media.images import image_size, open_image
from ..messages import MediaSource, Message

LLAMA_CPP = "llama-cpp-python==0.3.36"
"""What it was tested with."""
QUESTION = "Describe the picture."
MAX_NEW_TOKENS = 64
END = "the end"


@dataclass(frozen=True)
class Answers:
    """To one question, by both.

    Attributes:
        picture: its path.
        eden, llama_cpp: what they said.
        differs_at: the first token, counted from 1, that is not the same; None if all are.
        tokens: these two, as text; `END` where one has ended.
    """

    picture: str
    eden: str
    llama_cpp: str
    differs_at: int | None
    tokens: tuple[str, str] | None


@dataclass(frozen=True)
class Parity:
    """What a comparison found.

    Attributes:
        question: asked about each picture.
        answers: one for each.
        sizes: of the files, in bytes, by name.
        tokens_a_second: of each side, by its name: of answers, with the time that reading the picture took.
        note: on pictures that the two see differently; None if there are none.
    """

    question: str
    answers: Sequence[Answers]
    sizes: dict[str, int]
    tokens_a_second: dict[str, float]
    note: str | None

    @property
    def same(self) -> int:
        """Answers that are the same, token for token."""
        return sum(each.differs_at is None for each in self.answers)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"same": self.same, "agreement": self.same / len(self.answers), **asdict(self)}

    def lines(self) -> list[str]:
        """For people."""
        said = [f"same answers  {self.same} of {len(self.answers)} to {self.question!r}"]
        for answers in self.answers:
            if answers.tokens is not None:
                eden, llama_cpp = answers.tokens
                token = f"token {answers.differs_at} is {eden!r} to Eden, {llama_cpp!r} to llama.cpp"
                said.append(f"  {answers.picture}: {token}")
        if self.note is not None:
            said.append(f"  {self.note}")
        sizes = [f"{name} {written_size(size)}" for name, size in self.sizes.items()]
        rates = [f"{side} {rate:.1f}" for side, rate in self.tokens_a_second.items()]
        return [*said, f"size          {', '.join(sizes)}", f"tokens/s      {', '.join(rates)}"]


def pictures_to_check(paths: Sequence[Path]) -> list[Path]:
    """All pictures of files and folders, before the work of an export; llama.cpp has to be there, too.

    Raises:
        InputError: llama-cpp-python is not installed, or a folder holds no picture.
        ImageError: a file is missing or no picture.
    """
    pictures = []
    for path in paths:
        found = pictures_in(path) if path.is_dir() else [path]
        if not found:
            raise InputError("no picture in the folder", where=str(path), hint="Give one with JPEG or PNG files, say.")
        pictures += found
    for picture in pictures:
        image_size(picture)
    if find_spec("llama_cpp") is None:
        raise InputError("--check needs llama.cpp", hint=f"pip install {LLAMA_CPP}, which builds it from its source.")
    return pictures


def compare(model: str, files: tuple[Path, Path], pictures: Sequence[Path], question: str = QUESTION) -> Parity:
    """Asks both about each picture, Eden in the number format of this machine.

    Args:
        model: as it was exported.
        files: the language model's and that of its vision, as `write_gguf` gives them.
        pictures: their files, one at least.
        question: asked about each.

    Raises:
        RunError: llama.cpp failed.
    """
    with tempfile.TemporaryDirectory() as temporary:
        # The first one is not counted: it warms up. llama.cpp knows fewer formats, and nothing of EXIF.
        sources: list[MediaSource] = [PIL.Image.new("RGB", (64, 64)), *pictures]
        copies = [Path(temporary) / f"{place}.png" for place in range(len(sources))]
        for copy, source in zip(copies, sources, strict=True):
            open_image(source).save(copy)
        theirs = _ask_llama_cpp(files, copies, question)
        assistant = Assistant(checkpoints.load(model))
        ours = [_ask(assistant, copy, question) for copy in copies]
    tokenizer = assistant.processor.tokenizer
    answers = [
        tell_apart(tokenizer, str(picture), our["ids"], their["ids"])
        for picture, our, their in zip(pictures, ours[1:], theirs[1:], strict=True)
    ]
    rates = {
        side: sum(len(answer["ids"]) for answer in said[1:]) / sum(answer["seconds"] for answer in said[1:])
        for side, said in (("Eden", ours), ("llama.cpp", theirs))
    }
    sizes = {file.name: file.stat().st_size for file in files}
    return Parity(question, answers, sizes, rates, _note(assistant, pictures))


def _note(assistant: Assistant, pictures: Sequence[Path]) -> str | None:
    """llama.cpp fits a picture between bars, which only a model with `image_aspect: pad` sees as well."""
    aspect = assistant.checkpoint.config.image_aspect
    oblong = sum(width != height for width, height in map(image_size, pictures))
    if aspect == "pad" or not oblong:
        return None
    trained = f"the model was trained to {aspect}"
    return f"{oblong} of {len(pictures)} pictures not square: llama.cpp pads these, and {trained}"


def _ask(assistant: Assistant, picture: Path, question: str) -> dict[str, Any]:
    started = time.perf_counter()
    request = assistant.request([Message.user(question, [picture])], Sampling(max_new_tokens=MAX_NEW_TOKENS))
    answer = assistant.engine.submit(request, wait=True).wait()
    seconds = time.perf_counter() - started
    ended = answer.finish_reason == "stop"
    return {"ids": answer.token_ids[:-1] if ended else answer.token_ids, "seconds": seconds}


def _ask_llama_cpp(files: tuple[Path, Path], pictures: Sequence[Path], question: str) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as temporary:
        request, reply = Path(temporary) / "request.json", Path(temporary) / "reply.json"
        asked = {
            "model": str(files[0]),
            "mmproj": str(files[1]),
            "n_threads": torch.get_num_threads(),
            "questions": [(str(picture), question) for picture in pictures],
            "max_new_tokens": MAX_NEW_TOKENS,
        }
        request.write_text(json.dumps(asked), encoding="utf-8")
        script = Path(__file__).with_name("llama_cpp_process.py")
        done = subprocess.run([sys.executable, "-P", script, request, reply], capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr.strip() or f"it ended with {done.returncode}").splitlines()[-1]
            raise RunError(f"llama.cpp failed: {said}", hint=f"Eden was tested with {LLAMA_CPP}.")
        answers: list[dict[str, Any]] = json.loads(reply.read_text(encoding="utf-8"))
        return answers


def tell_apart(tokenizer: Any, picture: str, ours: Sequence[int], theirs: Sequence[int]) -> Answers:
    """Compares two answers by their ids, which `tokenizer` makes text of."""
    said = tokenizer.decode(ours), tokenizer.decode(theirs)
    for place, (our, their) in enumerate(zip_longest(ours, theirs), 1):
        if our != their:
            eden, llama_cpp = (END if token is None else tokenizer.decode([token]) for token in (our, their))
            return Answers(picture, *said, place, (eden, llama_cpp))
    return Answers(picture, *said, None, None)
