"""docs/real-run.md, command by command, on twins of the repositories that it names: from nothing to a Space."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cli
import openai
import pytest
import twins
from hub import COMMIT, NAMESPACE, TOKEN, Hub
from servers import audio_part, image_part, user
from test_readme import code_blocks
from transformers import AutoTokenizer

from eden.checkpoint import load_processor
from eden.core.location import EDEN_TINY_FOLDER
from eden.recipe import load_recipe

COMMANDS = [line for block in code_blocks("docs/real-run.md", "sh") for line in block.splitlines()]
NOT_OF_THE_HUB = ("curl", "unzip", "rm", "grep", "sed")
"""Begin the commands that fetch COCO and POPE: `twins.write_coco` writes what they leave."""
SHORTER = ["training.max_steps=3", "data.eval_fraction=0.25"]
"""Of 16 samples."""


@dataclass
class Place:
    """The folder that everything happens in, the hub, and what each command printed."""

    folder: Path
    hub: Hub
    printed: dict[str, str] = field(default_factory=dict)
    offline: str = "0"
    token: str = ""

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "phi3.5-mini"

    def environment(self, home: str = "home") -> dict[str, str]:
        own = {"HF_HOME": str(self.folder / home), "EDEN_CACHE": str(self.folder / "cache")}
        hub = self.hub.environment(self.token) | {"HF_HUB_OFFLINE": self.offline}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | own | hub | {"PATH": path, "CUDA_VISIBLE_DEVICES": ""}
        environment.pop("DISABLE_SAFETENSORS_CONVERSION", None)  # Eden has set it here, and has to set it there
        return environment

    def eden(self, command: list[str], **options: Any) -> cli.Python:
        return cli.Python("-m", *command, cwd=self.folder, env=self.environment(), **options)

    def do(self, command: list[str], *, home: str = "home") -> str:
        if command[0] == "eden" and home == "home":
            result = self.eden(command).finished()
        else:
            result = cli.Started(command, cwd=self.folder, env=self.environment(home)).finished()
        assert result.returncode == 0, f"{shlex.join(command)}\n{result.stderr}"
        return result.stdout

    def kill_behind_a_checkpoint(self, command: list[str]) -> None:
        with self.eden(command, stop=("eden.training.trainer", "EdenTrainer._save_checkpoint", 1)) as process:
            process.wait_until_stopped()
            process.kill()

    def serve(self, command: list[str]) -> str:
        """Starts the server, asks it one question about a picture by voice, and ends it."""
        command = [*command, "--port", "0", "--json", "--no-page"]
        with self.eden(command, stderr=subprocess.DEVNULL) as server:
            assert server.stdout is not None
            started = json.loads(server.stdout.readline())
            client = openai.OpenAI(base_url=f"{started['address']}/v1", api_key="none", timeout=120)
            picture = (self.folder / "train2017" / "000000033471.jpg").read_bytes()
            answer = client.chat.completions.create(
                model=started["model"], messages=[user(image_part(picture), audio_part())], max_tokens=5
            )
            server.send_signal(signal.SIGINT)
            assert server.wait() == 0
        assert answer.usage is not None
        return f"{answer.usage.prompt_tokens} {answer.usage.completion_tokens}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """All that the page tells to do has been done."""
    with Hub() as hub:
        hub.repositories |= {twins.CLIP: twins.clip(), twins.PHI: twins.phi()}
        hub.repositories |= {twins.WHISPER: twins.whisper(), twins.INSTRUCT: twins.instruct()}
        place = Place(tmp_path_factory.mktemp("real"), hub)
        twins.write_coco(place.folder)
        for line in COMMANDS:
            if line.startswith(NOT_OF_THE_HUB):
                continue
            place.printed[line] = follow(place, shlex.split(line.replace(" you/", f" {NAMESPACE}/")))
        yield place
        hub.shutdown()


def follow(place: Place, command: list[str]) -> str:
    """Does what a line of the page says; returns what it printed."""
    if command[:2] == ["eden", "plan"]:  # of the real shapes, which tests/test_plan.py plans
        return ""
    if command == ["unset", "HF_HUB_OFFLINE"]:
        place.offline = "0"
        return ""
    if command == ["hf", "auth", "login"]:
        place.token = TOKEN
        return ""
    if command[:2] == ["eden", "serve"]:
        return place.serve(command)
    if command[:2] == ["eden", "train"] and "--resume" not in command:
        place.kill_behind_a_checkpoint([*command, *SHORTER])
        return ""
    if command[:2] == ["eden", "train"]:
        assert {path.name for path in place.run.glob("checkpoint-*")} == {"checkpoint-2"}
        return place.do([*command, *SHORTER, "--json"])
    if command[:2] == ["eden", "ask"]:
        home = "elsewhere" if f"{NAMESPACE}/" in command[3] else "home"  # a model of the hub is for other machines
        return place.do([*command, "--max-new-tokens", "5", "--json"], home=home)
    printed = place.do(command)
    if command[:2] == ["hf", "download"] and "faster-whisper" in command[2]:  # the last of the downloads
        place.offline = "1"
    return printed


def line_with(*words: str) -> str:
    (line,) = (line for line in COMMANDS if all(word in line for word in words))
    return line


def test_every_kind_of_command_is_on_the_page() -> None:
    kinds = {" ".join(line.split()[:2]) for line in COMMANDS if line.startswith(("hf", "eden"))}
    eden = {f"eden {verb}" for verb in ("ask", "check", "evaluate", "export", "plan", "push", "serve", "train")}
    assert kinds == {"hf download", "hf auth", *eden}
    assert "export HF_HUB_OFFLINE=1" in Path(__file__).parent.parent.joinpath("docs/real-run.md").read_text()


def test_the_data_is_found_good(place: Place) -> None:
    assert "16 samples, 0 faulty: all good" in place.printed[line_with("eden check")]


def test_the_killed_run_ends_with_its_artifact(place: Place) -> None:
    """With the shipped recipe's numbers and ids, and the commits that the backbones came from."""
    result = json.loads(place.printed[line_with("--resume")])
    assert result["skipped"] == [] and result["train_loss"] > 0
    rows = [json.loads(line) for line in (place.run / "training.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3]
    assert load_recipe(place.run / "recipe.yaml") == load_recipe("phi3.5-mini", SHORTER)
    config = json.loads((place.run / "config.json").read_text())
    assert config["backbones"] == {
        "language": {"id": "microsoft/Phi-3.5-mini-instruct", "revision": COMMIT},
        "vision": {"id": "openai/clip-vit-base-patch32", "revision": COMMIT},
    }
    assert config["speech_model"] == "small"


def test_what_is_saved_is_as_published(place: Place) -> None:
    """The rotary factors, and text that is rendered as Phi-3.5's own tokenizer and template do."""
    config = json.loads((place.run / "config.json").read_text())
    published = json.loads(place.hub.repositories[twins.PHI].files["config.json"])
    saved = config["text_config"]["rope_parameters"]
    assert saved["rope_type"] == "longrope" and saved["short_factor"] != saved["long_factor"]
    assert {name: saved[name] for name in ("short_factor", "long_factor")} == {
        name: published["rope_scaling"][name] for name in ("short_factor", "long_factor")
    }
    snapshots = place.folder / "home" / "hub" / "models--microsoft--Phi-3.5-mini-instruct" / "snapshots"
    theirs, processor = AutoTokenizer.from_pretrained(snapshots / COMMIT), load_processor(str(place.run))
    conversation = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "what is  it?\n"},
        {"role": "assistant", "content": " a dog"},
    ]
    expected = theirs.apply_chat_template(conversation)["input_ids"]
    assert processor.encode(conversation)["input_ids"] == expected
    with pytest.raises(ValueError, match="</s>"):  # an added token like the others, though it is not special
        processor.encode([{"role": "user", "content": "what is </s>?"}])
    assert processor.image_token_id == len(theirs) == config["image_token_id"]


def test_it_is_evaluated_asked_and_served(place: Place) -> None:
    result = json.loads((place.folder / "runs" / "pope" / "result.json").read_text())
    assert "accuracy" in place.printed[line_with("eden evaluate")] and "accuracy" in json.dumps(result)
    asked = json.loads(place.printed[line_with("eden ask", "runs/")])
    elsewhere = json.loads(place.printed[line_with("eden ask", "you/")])
    assert asked["answer"] == elsewhere["answer"] and "answer" in asked
    prompt, completion = map(int, place.printed[line_with("eden serve")].split())
    assert prompt > len("How many objects are there?") and 1 <= completion <= 5


def test_the_space_and_the_model_are_on_the_hub(place: Place) -> None:
    """The files that the dry run has listed, and the adapter as it was trained."""
    adapter = (place.run / "adapter_model.safetensors").read_bytes()
    space, model = (place.hub.repositories[f"{kind}/{NAMESPACE}/eden-{name}"] for kind, name in PUSHED)
    assert space.private and space.made_with["sdk"] == "gradio"
    assert space.files["model/adapter_model.safetensors"] == adapter == model.files["adapter_model.safetensors"]
    listed = re.findall(r"^ *([\d,]+)  (\S+)$", place.printed[line_with("--dry-run")], re.M)
    assert {name: int(size.replace(",", "")) for size, name in listed} == {
        name: len(data) for name, data in space.files.items()
    }
    assert not any("checkpoint" in name for name in {*space.files, *model.files})


PUSHED = [("spaces", "sees"), ("models", "phi3.5-mini")]


def test_no_code_of_a_repository_ran_and_nothing_else_was_asked_for(place: Place) -> None:
    """Neither by hand nor by a machine that has only Eden; and nobody is asked to convert CLIP's pickle."""
    assert not list(place.folder.glob("*/remote-code-ran"))
    config = json.loads((place.run / "config.json").read_text())
    assert "auto_map" not in config["text_config"] and "auto_map" not in config["vision_config"]
    of_the_twins = [asked for asked in place.hub.asked if f"/{NAMESPACE}/" not in asked]
    assert (
        sum(asked.endswith("/pytorch_model.bin") for asked in of_the_twins) == 4
    )  # looked for and read, on each machine
    strange = (".py", ".h5", ".msgpack", "/commits/main", "/discussions", "complex_reasoning_77k.json")
    assert not [asked for asked in of_the_twins if asked.endswith(strange)]
    whisper = next(place.folder.glob("home/hub/*whisper*/snapshots/*/model.bin"))
    assert whisper.read_bytes() == (EDEN_TINY_FOLDER / "whisper" / "model.bin").read_bytes()
