"""The `eden` command: its verbs, its errors, its exit codes."""

from __future__ import annotations

import errno
import gc
import io
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

# Models are asked for by folder or hub id; a tokenizer that forks workers would only warn about it.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import typer
from rich.console import Console
from rich.text import Text

from .. import __version__
from ..core.distributed import ELSEWHERE, is_main, rank, wait_after, wait_for_launcher
from ..core.environment import check_environment
from ..core.files import storage_error
from ..core.processes import cores
from ..errors import EdenError, Interrupted
from .ask import ask, chat, transcribe
from .data import cache, check, xray
from .decide import decide
from .evaluate import evaluate
from .export import export, push
from .options import err
from .plan import plan
from .serve import serve
from .train import demo, report, train

app = typer.Typer(
    name="eden",
    help="Give a small language model eyes and ears: train, evaluate, ask, serve and export it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _main(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit()
    if context.invoked_subcommand is not None:
        check_environment()


for verb in (
    demo,
    ask,
    chat,
    decide,
    transcribe,
    check,
    xray,
    cache,
    plan,
    train,
    report,
    evaluate,
    serve,
    export,
    push,
):
    app.command()(verb)


def main() -> None:
    """The `eden` command. Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    # Importing torch and transformers makes hundreds of thousands of objects that stay. CPython's collector would look
    # at all of them again and again, for a fifth of the time to a first answer; it collects young ones as ever.
    gc.set_threshold(*gc.get_threshold()[:2], 50)
    _quiet_libraries()
    try:
        with _written_output():
            app(args=[argument for argument in sys.argv[1:] if argument != "--debug"])
    except EdenError as error:
        _say(error, "--debug" in sys.argv)
        if error.fault.kind == ELSEWHERE:  # the connections to a process that hangs would be waited for
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(error.exit_code)
        sys.exit(error.exit_code)
    except SystemExit as end:
        if end.code == Interrupted.exit_code and is_main():  # so typer ends at Ctrl-C, without a word
            err.print("stopped")
        raise
    except Exception:
        wait_for_launcher()
        raise


@contextmanager
def _written_output() -> Iterator[None]:
    """What is printed is whole where it goes, or the command fails. What cannot be written there is escaped.

    Raises:
        StorageError: the disk is full. That nobody reads on (`| head`) ends the command without a word.
    """
    out = sys.stdout
    if not isinstance(out, io.TextIOWrapper):  # closed
        return (yield)
    out.reconfigure(errors="backslashreplace")  # the name of a file need be no text, and not every terminal is UTF-8
    try:
        try:
            yield
        finally:
            out.flush()
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())  # Python writes what is left when it ends
        if error.errno == errno.EPIPE:
            sys.exit(1)
        raise storage_error(error, error.filename or "the output") from error


def _say(error: EdenError, debug: bool) -> None:
    place = "" if is_main() else f"in process {rank()}: "
    if not is_main() and isinstance(error, Interrupted):  # all of them were, and the main one says so
        return wait_for_launcher(1.0)
    if not is_main() or error.fault.kind == ELSEWHERE:
        wait_after(error)
    if debug:
        traceback.print_exc()
    # Not as markup: an error may name a file with brackets in it.
    return Console(stderr=True).print(Text.assemble(("error", "bold red"), f" {place}{error}"), soft_wrap=True)


def _quiet_libraries() -> None:
    """The libraries' own progress bars and advice would drown the one line that matters."""
    import logging
    import warnings

    if (usable := cores()) < (os.cpu_count() or 1):  # OpenMP counts the machine's cores, whatever the quota
        os.environ.setdefault("OMP_NUM_THREADS", str(usable))
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*autograd kernel was not registered")  # of bitsandbytes on a CPU
    warnings.filterwarnings("ignore", message=".*returned a view tensor")  # of FSDP; nothing changes one in place
    warnings.filterwarnings("ignore", module="peft")
