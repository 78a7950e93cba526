"""Verbs that bring a model elsewhere: export, push."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from ..core.files import replaced_folder
from ..errors import InputError
from .options import Json, err, print_json, say_if_trained_beside_others

if TYPE_CHECKING:
    from ..export.hub import Push
    from ..export.parity import Parity


def export(
    model: Annotated[str, typer.Argument(help="The artifact: a folder, a hub id or eden-tiny.")],
    out: Annotated[Path, typer.Argument(help="The new folder.")],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="hf: one merged model that transformers loads by itself. space: a Hugging Face Space. "
            "gguf: two files for llama.cpp.",
        ),
    ] = "hf",
    outtype: Annotated[
        str | None, typer.Option("--outtype", help="Of gguf's numbers: f16 (the default), bf16 or q8_0.")
    ] = None,
    check: Annotated[
        list[Path] | None,
        typer.Option(
            "--check",
            help="Of gguf: ask Eden and llama.cpp about a picture, or those in a folder, and compare their answers; "
            "may be given several times. Needs llama-cpp-python.",
        ),
    ] = None,
    question: Annotated[str | None, typer.Option(help="What --check asks; a description unless given.")] = None,
    four_bit: Annotated[
        bool,
        typer.Option("--4bit", help="Of hf: merge an adapter into what 4-bit weights stand for, as it was trained."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace all that is in the folder.")] = False,
    as_json: Json = False,
) -> None:
    """Turn an artifact into what other tools load, or into a page on the web."""
    if outtype is not None and to != "gguf":
        raise InputError("--outtype is for --to gguf only", hint="Leave it out.")
    if check and to != "gguf":
        raise InputError("--check is for --to gguf only", hint="Leave it out.")
    if question is not None and not check:
        raise InputError("--question without --check", hint="Add --check PICTURES.")
    if four_bit and to != "hf":
        hint = f"Export it --to hf DIR --4bit first, then DIR --to {to}."
        raise InputError("--4bit is for --to hf only", hint=hint)
    exists = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if exists and not (force and out.is_dir()):
        hint = "Choose another, or add --force, which replaces all that is in it."
        raise InputError("the folder is not empty" if out.is_dir() else "not a folder", where=str(out), hint=hint)
    pictures = _pictures(check) if check else []
    with replaced_folder(out) if exists else nullcontext(out) as folder:
        written = [out / path.name if path != folder else out for path in _write(model, folder, to, outtype, four_bit)]
    result: dict[str, Any] = {"folder": str(out)}
    if to == "gguf":
        result["files"] = [path.name for path in written]
    lines = [str(path) for path in written]
    if pictures:
        parity = _compare(model, written, pictures, question)
        result["check"] = parity.to_dict()
        lines += parity.lines()
    if as_json:
        print_json(result)
    else:
        print(*lines, sep="\n")


def _pictures(check: list[Path]) -> list[Path]:
    """Before the work of an export."""
    from ..export.parity import pictures_to_check

    return pictures_to_check(check)


def _compare(model: str, written: list[Path], pictures: list[Path], question: str | None) -> Parity:
    from ..export.parity import QUESTION, compare

    language_model, vision = written
    with err.status(f"asking Eden and llama.cpp about {len(pictures):,} pictures"):
        return compare(model, (language_model, vision), pictures, question or QUESTION)


def _write(model: str, out: Path, to: str, outtype: str | None, four_bit: bool) -> list[Path]:
    if not four_bit:
        say_if_trained_beside_others(model)
    if to == "hf":
        from .. import checkpoint as checkpoints
        from ..recipe import QuantizationSection

        with err.status(Text(f"exporting {model}")):
            loaded = checkpoints.load_as_stored(model, QuantizationSection() if four_bit else None)
            return [checkpoints.save(checkpoints.merge(loaded), out)]
    if to == "space":
        from ..export.space import write_space

        with err.status(Text(f"exporting {model}")):
            return [write_space(model, out)]
    if to == "gguf":
        from ..export.gguf import write_gguf

        with err.status(Text(f"exporting {model}")):
            return list(write_gguf(model, out, outtype or "f16"))
    raise InputError(f"cannot export to {to!r}", hint="Use --to hf, --to space or --to gguf.")


def push(
    model: Annotated[str, typer.Argument(help="A model's folder, an exported Space's folder, or eden-tiny.")],
    repo: Annotated[str, typer.Argument(help="The repository: namespace/name.")],
    space: Annotated[bool, typer.Option("--space", help="Make a Space of the model and push that.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Only you may see the repository.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List each file and upload none.")] = False,
    as_json: Json = False,
) -> None:
    """Upload a model or a Space to the Hugging Face hub."""
    from ..export.hub import check_repo, plan_push

    check_repo(repo)  # before the work of an export
    if not space:
        _push(plan_push(model, repo), private, dry_run, as_json)
        return
    from ..export.space import write_space

    with tempfile.TemporaryDirectory() as folder:
        with err.status(Text(f"exporting {model}")):
            write_space(model, folder)
        _push(plan_push(folder, repo), private, dry_run, as_json)


def _push(plan: Push, private: bool, dry_run: bool, as_json: bool) -> None:
    from ..export.hub import push as upload

    sizes = plan.sizes()
    total = f"{len(sizes)} files, {sum(sizes.values()):,} bytes"
    result = {
        "repo": plan.repo,
        "kind": plan.kind,
        "files": [{"path": path, "bytes": size} for path, size in sizes.items()],
        "bytes": sum(sizes.values()),
        "dry_run": dry_run,
    }
    if dry_run:
        if as_json:
            print_json(result)
            return
        for path, size in sizes.items():
            print(f"{size:>14,}  {path}")
        print(f"{total}, to the {plan.kind} {plan.repo}")
        return
    with err.status(f"uploading {total}"):
        done = upload(plan, private=private)
    if as_json:
        print_json({**result, "url": done.url, "removed": list(done.removed)})
        return
    for path in done.removed:
        err.print(f"removed  {path}", style="dim", highlight=False, markup=False)
    print(done.url)
