"""A wheel of the Eden that is running, and what it needs, without a build tool.

A wheel is a zip of the package's files beside a `.dist-info` folder
(https://packaging.python.org/en/latest/specifications/binary-distribution-format/). The files come from the imported
package and the metadata from its installation, so that a checkout and an installed wheel give the same.
"""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from importlib.metadata import Distribution, PackageNotFoundError, distribution, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from .. import __version__
from ..core.files import write_file
from ..errors import InputError

NAME = "eden-multimodal"
"""Eden's name on PyPI."""
PACKAGE = Path(__file__).parent.parent
REINSTALL = "Install Eden again: pip install -e '.[serve]' in a checkout, else pip install 'eden-multimodal[serve]'."


def build_wheel(folder: str | Path) -> Path:
    """Writes the wheel of the running Eden into a folder; the same files give the same bytes.

    Raises:
        InputError: Eden runs without being installed, or its installation is of another version.
        StorageError: the disk is full or the folder is not writable.
    """
    installed = _installed()
    stem = f"{NAME.replace('-', '_')}-{__version__}"
    contents = {f"{PACKAGE.name}/{name}": (PACKAGE / name).read_bytes() for name in _package_files()}
    info = f"{stem}.dist-info"
    for name in ("METADATA", "entry_points.txt", *_licenses(installed)):
        if (text := installed.read_text(name)) is not None:
            contents[f"{info}/{name}"] = text.encode()
    contents[f"{info}/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: eden {__version__}\nRoot-Is-Purelib: true\nTag: py3-none-any\n".encode()
    )
    lines = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in contents.items()]
    contents[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,", ""]).encode()

    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in contents.items():
            entry = zipfile.ZipInfo(name)  # dated 1980: a wheel has no time of its own
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, data, zipfile.ZIP_DEFLATED)
    return write_file(Path(folder) / f"{stem}-py3-none-any.whl", wheel.getvalue())


def server_requirements() -> list[str]:
    """What Eden and its server need, at the versions installed here, sorted: `["accelerate==1.15.0", ...]`.

    A local version such as torch's `+cpu` is left out: no index but its own has it.

    Raises:
        InputError: Eden is not installed, or the packages of its server are not.
    """
    pinned = []
    for line in _installed().requires or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": "serve"}):
            continue
        try:
            pinned.append(f"{canonicalize_name(requirement.name)}=={Version(version(requirement.name)).public}")
        except PackageNotFoundError as error:
            raise InputError(f"{requirement.name} is not installed, and the server needs it", hint=REINSTALL) from error
    if not any(line.startswith("gradio==") for line in pinned):
        raise InputError(
            "Eden's installation is older than its code: it does not name the server's packages", hint=REINSTALL
        )
    return sorted(pinned)


def _installed() -> Distribution:
    try:
        installed = distribution(NAME)
    except PackageNotFoundError as error:
        raise InputError("Eden is not installed, so what it needs is not known", hint=REINSTALL) from error
    if installed.version != __version__:
        raise InputError(f"Eden {__version__} runs, but {installed.version} is installed", hint=REINSTALL)
    return installed


def _package_files() -> list[str]:
    """The package's files, code and data, without what Python and editors leave behind."""
    paths = (path.relative_to(PACKAGE) for path in PACKAGE.rglob("*") if path.is_file())
    return sorted(
        path.as_posix()
        for path in paths
        if path.suffix != ".pyc" and not any(part == "__pycache__" or part.startswith(".") for part in path.parts)
    )


def _licenses(installed: Distribution) -> list[str]:
    return [f"licenses/{name}" for name in installed.metadata.get_all("License-File") or []]


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
