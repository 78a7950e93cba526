"""What leaves this machine: Eden's own wheel, a Space, and what is pushed to a hub."""

import base64
import csv
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

import cli
import pytest
import yaml
from browser import chromium, tour
from conftest import make_model, make_processor
from hatchling.build import build_wheel as build_with_hatchling
from hub import TOKEN, Hub
from packaging.requirements import Requirement
from servers import until
from test_checkpoint import adapt, answers

import eden
from eden import CheckpointError, InputError
from eden.checkpoint import Checkpoint, load, save
from eden.checkpoint.artifact import Artifact
from eden.core.location import EDEN_TINY_FOLDER
from eden.export.allowed_files import included_files
from eden.export.hub import plan_push
from eden.export.space import suggest_hardware, write_space
from eden.export.wheel import build_wheel, server_requirements
from eden.model import MultimodalPhiConfig

ROOT = Path(__file__).parent.parent
WHEEL = f"eden_multimodal-{eden.__version__}-py3-none-any.whl"
INFO = f"eden_multimodal-{eden.__version__}.dist-info"


@pytest.fixture(scope="module")
def hatch_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout's wheel as the build tool makes it."""
    folder, here = tmp_path_factory.mktemp("hatchling"), Path.cwd()
    os.chdir(ROOT)
    try:
        return folder / build_with_hatchling(str(folder))
    finally:
        os.chdir(here)


@pytest.fixture(scope="module", autouse=True)
def metadata(hatch_wheel: Path) -> Iterator[Path]:
    """Eden's metadata as pyproject.toml has it now; that of an editable installation is as old as the installation."""
    folder = hatch_wheel.parent / "metadata"
    with zipfile.ZipFile(hatch_wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.startswith(INFO)])
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh virtual environment that has all of this one's packages but Eden."""
    folder = tmp_path_factory.mktemp("fresh")
    packages = folder / "packages"
    packages.mkdir()
    for item in Path(sysconfig.get_path("purelib")).iterdir():
        if "eden" not in item.name:
            (packages / item.name).symlink_to(item)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    (site / "packages.pth").write_text(str(packages))
    python = folder / "venv" / "bin" / "python"
    assert run([python, "-c", "import eden"]).stderr.strip().endswith("No module named 'eden'")
    return python


@pytest.fixture(scope="module")
def fresh_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a virtual environment that holds what a Space's requirements.txt says, installed from the index."""
    folder = tmp_path_factory.mktemp("fresh")
    requirements = folder / "requirements.txt"
    requirements.write_text("\n".join(server_requirements()))
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    installed = run([python, "-m", "pip", "install", "--quiet", "-r", requirements])
    assert installed.returncode == 0, installed.stderr
    return python


def run(command: list[str | Path], **more: str) -> subprocess.CompletedProcess[str]:
    """Another process, which sees nothing of this one's paths."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | more
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd="/", env=environment)


def run_eden(metadata: Path, *arguments: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    return cli.eden(*arguments, cwd="/", env=os.environ | {"PYTHONPATH": f"{metadata}:{ROOT}"} | more)


def test_the_wheel_holds_what_the_build_tool_puts_into_it(wheel: Path, hatch_wheel: Path) -> None:
    ours, theirs = zipfile.ZipFile(wheel), zipfile.ZipFile(hatch_wheel)
    assert wheel.name == WHEEL == hatch_wheel.name
    assert sorted(ours.namelist()) == sorted(theirs.namelist())
    different = {name for name in ours.namelist() if ours.read(name) != theirs.read(name)}
    assert different == {f"{INFO}/WHEEL", f"{INFO}/RECORD"}  # who made it


def test_the_record_is_right(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    rows = list(csv.reader(archive.read(f"{INFO}/RECORD").decode().splitlines()))
    assert [row[0] for row in rows] == archive.namelist()
    for name, digest, size in rows[:-1]:
        data = archive.read(name)
        expected = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        assert (digest, size) == (f"sha256={expected}", str(len(data)))
    assert rows[-1] == [f"{INFO}/RECORD", "", ""]


def test_the_page_installs_the_wheel_and_eden_is_there(bare_python: Path, wheel: Path, tmp_path: Path) -> None:
    """The Space's own first lines, in an environment that has its requirements and not Eden."""
    space = write_space("eden-tiny", tmp_path / "space")
    head, _, _ = (space / "app.py").read_text().partition("\nimport eden\n")
    (space / "head.py").write_text(f"{head}\nimport eden\nprint(eden.__file__)\n")
    first, again = run([bare_python, space / "head.py"]), run([bare_python, space / "head.py"])
    assert first.returncode == again.returncode == 0, first.stderr
    assert first.stdout == again.stdout and first.stdout.startswith(str(bare_python.parent.parent))

    assert run([bare_python.parent / "eden", "--version"]).stdout.strip() == eden.__version__
    script = f"from eden.export.wheel import build_wheel; build_wheel({str(tmp_path)!r})"
    assert run([bare_python, "-c", script]).returncode == 0
    assert (tmp_path / WHEEL).read_bytes() == wheel.read_bytes()


@pytest.mark.parametrize(
    ("python", "devices"),
    [
        ("bare_python", ["phone"]),
        pytest.param("fresh_python", ["desktop", "phone"], marks=[pytest.mark.fresh, pytest.mark.timeout(1800)]),
    ],
)
def test_the_page_of_a_space_does_what_every_page_does(
    python: str, devices: list[str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    space = write_space("eden-tiny", tmp_path / "space")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [request.getfixturevalue(python), space / "app.py"]
    environment["GRADIO_SERVER_PORT"] = port
    with (
        chromium() as browser,
        (tmp_path / "log").open("w+") as log,
        cli.Started(command, cwd="/", env=environment, stdout=log, stderr=log) as app,
    ):
        until(lambda: answers_at(port) or app.poll() is not None, seconds=120)
        assert app.poll() is None, (tmp_path / "log").read_text()
        said = ["How many objects are there?", "Four.", "Square."]
        assert tour(browser, f"http://127.0.0.1:{port}", "space", devices) == dict.fromkeys(devices, said)
        app.terminate()


def answers_at(port: str) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", int(port))) == 0


def test_an_installation_older_than_the_code_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / INFO).mkdir()
    (tmp_path / INFO / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: eden-multimodal\nVersion: {eden.__version__}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match=r"does not name the server's packages. Install Eden again"):
        server_requirements()
    (tmp_path / INFO / "METADATA").write_text("Metadata-Version: 2.1\nName: eden-multimodal\nVersion: 0.0.1\n")
    with pytest.raises(InputError, match=r"runs, but 0\.0\.1 is installed"):
        build_wheel(tmp_path)


def front(space: Path) -> dict[str, str]:
    return yaml.safe_load((space / "README.md").read_text().split("---\n")[1])


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_space_of_eden_tiny(metadata: Path, tmp_path: Path) -> None:
    space = tmp_path / "space"
    result = run_eden(metadata, "export", "eden-tiny", "--to", "space", space, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {"folder": str(space)}
    assert names(space) == {"app.py", "README.md", "requirements.txt", WHEEL}
    requirements = {line.name: line for line in map(Requirement, (space / "requirements.txt").read_text().splitlines())}
    assert {"torch", "transformers", "gradio", "fastapi", "uvicorn", "jinja2"} <= set(requirements)
    assert "pytest" not in requirements
    for requirement in requirements.values():
        (pin,) = requirement.specifier
        assert pin.operator == "==" and "+" not in pin.version
    assert front(space) == {
        "title": "eden-tiny",
        "emoji": "🌱",
        "colorFrom": "green",
        "colorTo": "blue",
        "sdk": "gradio",
        "sdk_version": str(requirements["gradio"].specifier).removeprefix("=="),
        "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",
        "app_file": "app.py",
        "license": "apache-2.0",
        "suggested_hardware": "cpu-basic",
    }
    app = (space / "app.py").read_text()
    compile(app, "app.py", "exec")
    assert 'eden.load("eden-tiny")' in app and app.index("import spaces") < app.index("\nimport eden\n")


def test_a_space_of_an_adapter_on_eden_tiny_keeps_the_adapter(tmp_path: Path) -> None:
    run_folder = tmp_path / 'my "shapes"'
    adapted = adapt(Path("eden-tiny"), run_folder)
    (run_folder / "README.md").write_text("---\nlicense: mit\n---\n\n# shapes\n")
    (run_folder / "checkpoint-8").mkdir()
    (run_folder / "checkpoint-8" / "optimizer.pt").write_bytes(b"\x80")
    (run_folder / ".secret").write_text("hf_x")
    space = write_space(str(run_folder), tmp_path / "space")
    assert {"adapter_config.json", "adapter_model.safetensors", "config.json"} <= names(space / "model")
    assert not any("checkpoint" in name or "secret" in name for name in names(space))
    assert front(space)["title"] == 'my "shapes"' and front(space)["license"] == "mit"
    assert front(space)["suggested_hardware"] == "cpu-basic"
    compile((space / "app.py").read_text(), "app.py", "exec")
    assert answers(load(str(space / "model"))) == answers(adapted)


def test_a_space_of_an_adapter_whose_base_stays_here_is_merged(tmp_path: Path) -> None:
    model = make_model("patches")
    save(Checkpoint(model, make_processor(model.config.num_image_tokens), "x", None), tmp_path / "base")
    adapted = adapt(tmp_path / "base", tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"only on this machine: .*base. Merge it first: eden export"):
        plan_push(str(tmp_path / "run"), "me/run")
    space = write_space(str(tmp_path / "run"), tmp_path / "space")
    said = answers(adapted)
    shutil.rmtree(tmp_path / "base")
    assert "adapter_config.json" not in names(space / "model")
    assert answers(load(str(space / "model"))) == said


def test_an_export_replaces_nothing_unasked(tmp_path: Path, metadata: Path) -> None:
    model = make_model("patches")
    save(Checkpoint(model, make_processor(model.config.num_image_tokens), "x", None), tmp_path / "base")
    said = answers(adapt(tmp_path / "base", tmp_path / "run"))
    before = names(tmp_path / "run")
    for to in ("hf", "space", "gguf"):
        refused = run_eden(metadata, "export", tmp_path / "run", tmp_path / "run", "--to", to)
        assert refused.returncode == 2 and "the folder is not empty" in refused.stderr and "--force" in refused.stderr
    assert names(tmp_path / "run") == before
    result = run_eden(metadata, "export", tmp_path / "run", tmp_path / "run", "--to", "hf", "--force")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(tmp_path / "run")
    assert "adapter_config.json" not in names(tmp_path / "run") and "model.safetensors" in names(tmp_path / "run")
    assert answers(load(str(tmp_path / "run"))) == said
    assert {path.name for path in tmp_path.iterdir()} == {"base", "run"}


def test_a_space_of_a_model_on_the_hub_only_names_it(metadata: Path, tmp_path: Path) -> None:
    """The hub's cache stands in for the hub; the configuration has the sizes of Phi-3.5-mini."""
    config = MultimodalPhiConfig(
        text_config={"model_type": "phi3", "hidden_size": 3072, "num_hidden_layers": 32, "intermediate_size": 8192}
    )
    repository = tmp_path / "cache" / "models--me--shapes"
    config.save_pretrained(repository / "snapshots" / ("1" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("1" * 40)
    space = tmp_path / "space"
    result = run_eden(metadata, "export", "me/shapes", "--to", "space", space, HF_HUB_CACHE=str(tmp_path / "cache"))
    assert result.returncode == 0, result.stderr
    assert names(space) == {"app.py", "README.md", "requirements.txt", WHEEL}
    assert 'eden.load("me/shapes")' in (space / "app.py").read_text()
    assert front(space)["suggested_hardware"] == "t4-small"
    missing = run_eden(metadata, "export", "me/gone", "--to", "space", tmp_path / "none")
    assert missing.returncode == 2 and "no such model on the hub" in missing.stderr
    assert not (tmp_path / "none").exists()


def test_hardware_follows_from_the_size() -> None:
    assert Artifact.open("eden-tiny").parameters == sum(parameter.numel() for parameter in load().model.parameters())
    sizes = {2 * 10**9: "t4-small", 8 * 10**9: "l4x1", 14 * 10**9: "a100-large"}
    assert {size: suggest_hardware(size) for size in sizes} == sizes


def test_a_whisper_that_stays_here_is_refused(tmp_path: Path) -> None:
    shutil.copytree(EDEN_TINY_FOLDER, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    whisper = str(EDEN_TINY_FOLDER / "whisper")
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "speech_model": whisper}))
    with pytest.raises(InputError, match=r"a Whisper that is only on this machine"):
        write_space(str(tmp_path / "model"), tmp_path / "space")
    with pytest.raises(CheckpointError, match=r"only on this machine"):
        plan_push(str(tmp_path / "model"), "me/model")
    assert not (tmp_path / "space").exists()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that may be shared as it is."""
    (tmp_path / "model" / "whisper").mkdir(parents=True)
    (tmp_path / "model" / "config.json").write_text("{}")
    shutil.copy(EDEN_TINY_FOLDER / "whisper" / "model.bin", tmp_path / "model" / "whisper")
    return tmp_path / "model"


def test_a_whispers_weights_are_no_pickle(folder: Path) -> None:
    assert list(map(str, included_files(folder))) == ["config.json", "whisper/model.bin"]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "whisper/model.bin", "state.pt", "all.PKL"])
def test_pickles_do_not_travel(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"\x80\x04N.")
    with pytest.raises(InputError, match=rf"{name}: a pickle may run code .* safetensors"):
        included_files(folder)


def test_strange_files_do_not_travel(folder: Path) -> None:
    (folder / "mail.sqlite").touch()
    with pytest.raises(InputError, match=r"mail\.sqlite: no part of a model"):
        included_files(folder)


@pytest.mark.parametrize("target", ["../secret.json", "gone.json", "..", "whisper"])
def test_links_stay_inside(folder: Path, target: str) -> None:
    (folder.parent / "secret.json").touch()
    (folder / "also.json").symlink_to("config.json")
    assert Path("also.json") in included_files(folder)
    (folder / "link.json").symlink_to(target)
    with pytest.raises(InputError, match=r"link\.json: a link that leads to no file of this folder"):
        included_files(folder)


@pytest.mark.parametrize("repo", ["shapes", "me/shapes/2", "me/", "../x", "me/sh apes", "https://huggingface.co/me/x"])
def test_a_repository_has_a_namespace_and_a_name(repo: str) -> None:
    with pytest.raises(InputError, match=r"no name of a repository. Give namespace/name"):
        plan_push("eden-tiny", repo)


def test_what_is_neither_model_nor_space_is_not_pushed(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no such folder"):
        plan_push(str(tmp_path / "gone"), "me/x")
    with pytest.raises(CheckpointError, match=r"no config\.json, so it is no Eden artifact"):
        plan_push(str(tmp_path), "me/x")
    (tmp_path / "README.md").write_text("---\nsdk: gradio\n---\n")
    with pytest.raises(CheckpointError, match=r"no app\.py, so it is no Space"):
        plan_push(str(tmp_path), "me/x")


@pytest.fixture(scope="module")
def one_hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub
        hub.shutdown()


@pytest.fixture
def hub(one_hub: Hub) -> Hub:
    """Without repositories."""
    one_hub.repositories.clear()
    return one_hub


def of(hub: Hub, metadata: Path, token: str = TOKEN) -> dict[str, str]:
    """The environment in which the hub's client asks it, and finds nobody's login on this machine."""
    return hub.environment(token) | {"HF_HOME": str(metadata)}


def test_a_dry_run_lists_exactly_what_is_uploaded(metadata: Path, hub: Hub) -> None:
    listed = run_eden(metadata, "push", "eden-tiny", "me/shapes", "--dry-run", HF_TOKEN="")
    lines = listed.stdout.splitlines()
    assert listed.returncode == 0 and lines[-1].endswith(" bytes, to the model me/shapes"), listed.stderr
    pushed = run_eden(metadata, "push", "eden-tiny", "me/shapes", "--json", **of(hub, metadata))
    assert pushed.returncode == 0, pushed.stderr
    result, files = json.loads(pushed.stdout), hub.repositories["models/me/shapes"].files
    assert result["url"] == f"{hub.url}/me/shapes" and result["removed"] == []
    assert {file["path"]: file["bytes"] for file in result["files"]} == {name: len(files[name]) for name in files}
    assert lines[:-1] == [f"{file['bytes']:>14,}  {file['path']}" for file in result["files"]]
    assert files == {name: (EDEN_TINY_FOLDER / name).read_bytes() for name in names(EDEN_TINY_FOLDER)}


def test_a_model_becomes_a_space_on_the_hub(metadata: Path, hub: Hub) -> None:
    pushed = run_eden(metadata, "push", "eden-tiny", "me/demo", "--space", "--private", **of(hub, metadata))
    assert pushed.returncode == 0, pushed.stderr
    assert pushed.stdout.strip() == f"{hub.url}/spaces/me/demo"
    made = hub.repositories["spaces/me/demo"]
    assert made.private and made.made_with["sdk"] == "gradio"
    assert set(made.files) == {"app.py", "README.md", "requirements.txt", WHEEL}


def test_weights_of_the_earlier_model_go(metadata: Path, hub: Hub, folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "eden-tiny"}')
    (folder / "adapter_model.safetensors").write_bytes(b"0")
    assert run_eden(metadata, "push", folder, "me/shapes", **of(hub, metadata)).returncode == 0
    hub.repositories["models/me/shapes"].files["picture.png"] = b"somebody's own"
    pushed = run_eden(metadata, "push", "eden-tiny", "me/shapes", **of(hub, metadata))
    assert "removed  adapter_config.json\nremoved  adapter_model.safetensors" in pushed.stderr
    assert set(hub.repositories["models/me/shapes"].files) == {*names(EDEN_TINY_FOLDER), "picture.png"}
    hidden = run_eden(metadata, "push", "eden-tiny", "me/shapes", "--private", **of(hub, metadata))
    assert hidden.returncode == 1 and "the repository exists and is public" in hidden.stderr


def test_every_refusal_is_one_line_with_a_hint(metadata: Path, hub: Hub) -> None:
    cases = [
        ("me/x", of(hub, metadata, ""), "nobody is logged in to the hub. Run hf auth login"),
        ("me/x", of(hub, metadata, "hf_wrong"), "Run hf auth login"),
        ("you/x", of(hub, metadata), "Check that the namespace is yours"),
        ("me/x", {"HF_TOKEN": TOKEN}, "Check the network"),  # told to stay offline
        ("me/x", of(hub, metadata) | {"HF_ENDPOINT": "http://127.0.0.1:9"}, "Check the network"),
    ]
    for repo, environment, hint in cases:
        result = run_eden(metadata, "push", "eden-tiny", repo, **environment)
        assert (result.returncode, result.stdout) == (1, ""), hint
        assert len(result.stderr.strip().splitlines()) == 1 and hint in result.stderr, result.stderr
    assert hub.repositories == {}
