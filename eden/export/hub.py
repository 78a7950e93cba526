"""A folder's way to a repository of the hub: first the list of files, then the upload of exactly those."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from .. import __version__
from ..core.location import EDEN_TINY, EDEN_TINY_FOLDER
from ..errors import CheckpointError, EdenError, InputError, RunError, first_line
from .allowed_files import front_matter, included_files

LOG_IN = "Run hf auth login with a token that may write."
HINTS = {
    401: LOG_IN,
    402: "A Space of this kind needs a paid account; make it by hand on the hub, or push to another namespace.",
    403: f"Check that the namespace is yours. {LOG_IN}",
    404: "Check the repository's name, and that the namespace is yours.",
}
"""What to do about an answer of the hub, by its HTTP status."""


@dataclass(frozen=True)
class Push:
    """What will be uploaded.

    Attributes:
        repo: `namespace/name`.
        folder: of the files.
        files: relative to the folder, sorted.
        sdk: of a Space; None for a model.
    """

    repo: str
    folder: Path
    files: tuple[Path, ...]
    sdk: str | None

    @property
    def kind(self) -> str:
        """The hub's name of the repository's kind."""
        return "space" if self.sdk else "model"

    def sizes(self) -> dict[str, int]:
        """Bytes by file, in the order of the upload."""
        return {path.as_posix(): (self.folder / path).stat().st_size for path in self.files}


@dataclass(frozen=True)
class Pushed:
    """What was done.

    Attributes:
        url: of the repository.
        removed: weights of an earlier model that were deleted there.
    """

    url: str
    removed: tuple[str, ...]


def plan_push(model: str, repo: str) -> Push:
    """Lists what would be uploaded; needs no network.

    Args:
        model: `eden-tiny`, an artifact's folder or an exported Space's.
        repo: `namespace/name`.

    Raises:
        InputError: the repository's name is none, or the folder holds what should not be shown to others.
        CheckpointError: there is no such folder, it is no artifact, or its base is only on this machine.
    """
    check_repo(repo)
    folder = EDEN_TINY_FOLDER if model == EDEN_TINY else Path(model)
    if not folder.is_dir():
        raise CheckpointError("no such folder", where=model, hint="Give a model's folder or an exported Space's.")
    head = front_matter(folder)
    sdk = str(head["sdk"]) if "sdk" in head else None
    needed = "config.json" if sdk is None else str(head.get("app_file", "app.py"))
    if not (folder / needed).exists():
        raise CheckpointError(
            f"the folder holds no {needed}, so it is no {'Eden artifact' if sdk is None else 'Space'}",
            where=model,
            hint="Give a model's folder, or make a Space: eden export MODEL --to space DIR.",
        )
    if sdk is None:
        from ..checkpoint.artifact import Artifact  # takes seconds, which a misspelt name should not

        if (base := Artifact.open(str(folder)).local_dependency()) is not None:
            raise CheckpointError(
                f"the model needs another that is only on this machine: {base}",
                where=model,
                hint=f"Merge it first: eden export {model} --to hf DIR.",
            )
    return Push(repo, folder, tuple(included_files(folder)), sdk)


def push(plan: Push, *, private: bool = False) -> Pushed:
    """Makes the repository if there is none, and uploads the plan's files in one commit.

    A repository that held an adapter and gets a whole model, or the other way round, loses the weights of the earlier
    one: whoever loads it would get those, or both.

    Raises:
        RunError: nobody is logged in, the hub refuses or cannot be reached, or `private` was asked for and the
            repository is public.
    """
    if get_token() is None:
        raise RunError("nobody is logged in to the hub", where=plan.repo, hint=LOG_IN)
    api = HfApi(library_name="eden", library_version=__version__)
    with _hub_errors(plan.repo):
        url = api.create_repo(
            plan.repo, repo_type=plan.kind, private=private or None, exist_ok=True, space_sdk=plan.sdk
        )
        if private and not api.repo_info(plan.repo, repo_type=plan.kind).private:
            raise RunError("the repository exists and is public", where=plan.repo, hint="Push to another name.")
        removed = _stale(api.list_repo_files(plan.repo, repo_type=plan.kind), plan)
        api.create_commit(
            plan.repo,
            [
                *(CommitOperationDelete(path) for path in removed),
                *(CommitOperationAdd(path.as_posix(), str(plan.folder / path)) for path in plan.files),
            ],
            commit_message=f"Upload with Eden {__version__}",
            repo_type=plan.kind,
        )
    return Pushed(str(url), removed)


def check_repo(repo: str) -> None:
    """Raises an InputError unless `repo` is a name that the hub takes, with its namespace."""
    try:
        validate_repo_id(repo)
        valid = repo.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise InputError(f"{repo!r} is no name of a repository", hint="Give namespace/name, as me/eden-shapes.")


def _stale(there: list[str], plan: Push) -> tuple[str, ...]:
    """Weights in the repository, and what says how to join them, that the upload does not replace."""
    weights = ("*.safetensors", "*.safetensors.index.json", "adapter_config.json")
    kept = {path.as_posix() for path in plan.files}
    return tuple(path for path in there if path not in kept and any(Path(path).match(weight) for weight in weights))


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise RunError(
            f"the hub refuses ({first_line(error)})", where=repo, hint=HINTS.get(status, "Try again later.")
        ) from error
    except EdenError:
        raise
    except (
        Exception
    ) as error:  # the hub's client, its HTTP library, its uploader and the file system each have their own
        raise RunError(
            f"the upload failed ({first_line(error)})", where=repo, hint="Check the network and try again."
        ) from error
