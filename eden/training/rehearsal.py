"""What a base answers to plain prompts, to be learned beside the data, so that it stays as it was where no picture is.

Its own words have little loss for it, so that they hold it where it is without teaching anything new.
"""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from ..checkpoint import Checkpoint, model_fingerprint
from ..core import distributed
from ..core.console import AS_IT_IS, progress
from ..core.files import cache_folder, write_file
from ..data.cache import digest
from ..errors import DataError, RunError
from ..inference.assistant import Assistant
from ..inference.knowledge import read_lines
from ..messages import Message
from .before_after import in_use

SHIPPED = "shipped"
"""In a recipe, the prompts inside the package."""
ANSWER_TOKENS = 256
"""The longest answer; one that is cut off is left out, for it would teach to stop in mid-sentence."""
FORMAT = "1"
"""Part of every key: change it when the same base would be asked differently."""


def prompts_of(source: str) -> list[str]:
    """The prompts that a recipe names, each once.

    Raises:
        DataError: the file cannot be read, or there is none in it.
    """
    try:
        lines = read_lines("prompts.txt") if source == SHIPPED else Path(source).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        what = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        hint = f"Give a text file with a prompt a line, or write data.rehearsal.prompts={SHIPPED}."
        raise DataError(what, where=source, hint=hint) from error
    prompts = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not prompts:
        raise DataError("there is no prompt in it", where=source, hint="Write one a line.")
    return prompts


def own_answers(checkpoint: Checkpoint, prompts: list[str], console: Console) -> Path:
    """A data file of the prompts with the model's greedy answers; the main process asks it, once for a cache.

    Args:
        checkpoint: the base, or the base with adapters that change nothing yet.
        prompts: what it is asked.
        console: where progress is shown.

    Raises:
        RunError: it has a whole answer to none of them.
        StorageError: the cache is not writable.
    """
    # What LoRA draws at random changes nothing before the first step: its other half is zero.
    base = model_fingerprint(checkpoint, without="lora_A")
    path = cache_folder() / "rehearsal" / f"{digest(json.dumps([FORMAT, base, prompts, ANSWER_TOKENS]))}.jsonl"

    def answered() -> str:
        return path.read_text("utf-8") if path.exists() else _ask(checkpoint, prompts, console)

    text = distributed.from_main(answered)
    distributed.main_first(lambda: path.exists() or write_file(path, text))
    return path


def _ask(checkpoint: Checkpoint, prompts: list[str], console: Console) -> str:
    with in_use(checkpoint), progress(console) as bar:
        task = bar.add_task("answering prompts to rehearse", total=len(prompts))
        answers = Assistant(checkpoint).answer_all(
            [[Message.user(prompt)] for prompt in prompts],
            max_new_tokens=ANSWER_TOKENS,
            keep_cut=False,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    turns = [
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        for prompt, answer in zip(prompts, answers, strict=True)
        if answer
    ]
    if not turns:
        hint = "Ask for short answers, or give data.rehearsal.path in the place of prompts."
        raise RunError(f"the base ends none of its answers within {ANSWER_TOKENS} tokens", hint=hint)
    left = f", {len(prompts) - len(turns)} without a whole answer are left out" if len(turns) < len(prompts) else ""
    console.print(f"{len(turns)} prompts answered to rehearse{left}", **AS_IT_IS)
    return "".join(json.dumps({"messages": of_prompt}, ensure_ascii=False) + "\n" for of_prompt in turns)
