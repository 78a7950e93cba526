"""Whether the libraries installed are those that Eden was made for."""

from __future__ import annotations

from ..errors import InputError

TESTED = {
    "accelerate": "1.15.0",
    "bitsandbytes": "0.50.2",
    "faster-whisper": "1.2.1",
    "gradio": "6.31.0",
    "peft": "0.21.2",
    "transformers": "5.23.0",
}
"""Of the libraries with an upper bound, whose private parts Eden uses: the versions in constraints.txt."""


def versions(*libraries: str) -> str:
    """What is installed of some libraries: a part of the name of what they have made, and another version would not."""
    from importlib.metadata import version

    return " ".join(f"{library} {version(library)}" for library in libraries)


def check_environment() -> None:
    """Compares what is installed with what Eden's own installation asks for, its extras included, `dev` left out.

    Nothing is said of a package that is not there: only the verb that needs it knows that it does. Nor if Eden runs
    without being installed.

    Raises:
        InputError: a library is older or newer than its bounds.
    """
    from importlib.metadata import PackageNotFoundError, requires, version

    from packaging.requirements import Requirement

    try:
        lines = requires("eden-multimodal") or []
    except PackageNotFoundError:
        return
    for requirement in [Requirement(line) for line in lines if 'extra == "dev"' not in line.replace("'", '"')]:
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            continue
        # A release before its final one counts as what it is called: who installed it meant to.
        if not requirement.specifier.contains(installed, prereleases=True):
            tested = TESTED.get(requirement.name)
            wanted = f"{requirement.name}=={tested}" if tested else f"{requirement.name}{requirement.specifier}"
            raise InputError(
                f"{requirement.name} {installed} is installed, and Eden needs {requirement.specifier}"
                + (f" (tested with {tested})" if tested else ""),
                hint=f"pip install '{wanted}'",
                kind="environment",
            )
