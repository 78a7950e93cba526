"""Training runs, started as users start them: in another process, by the command line."""

import gc
import io
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cli
import pytest
import torch
from conftest import COLOURS, make_image
from rich.console import Console
from safetensors.torch import load_file
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import Phi3Model

import eden
from eden import CheckpointError, DataError, RecipeError, RunError, StorageError
from eden.core.location import EDEN_TINY_FOLDER
from eden.recipe import Recipe, load_recipe
from eden.training.resume import Start
from eden.training.train import Run, report, train


def overrides(data: Path, backbones: tuple[Path, Path], out: Path, **training: Any) -> list[str]:
    """The seed's recipe, pointed at small backbones."""
    settings = {"max_steps": 20, "learning_rate": 1e-3, "per_device_train_batch_size": 2, **training}
    return [
        f"model.vision={backbones[0]}",
        f"model.language={backbones[1]}",
        f"data.path={data}",
        "data.images=null",
        "data.eval_fraction=0.125",
        "data.split_by=sample",  # each picture is in four of them
        f"training.output_dir={out}",
        *(f"training.{name}={value}" for name, value in settings.items()),
    ]


def losses(folder: Path) -> list[tuple[int, str, float]]:
    rows = [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]
    return [(row["step"], key, row[key]) for row in rows for key in ("loss", "eval_loss") if key in row]


@pytest.fixture(scope="module")
def finished(data: Path, backbones: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The seed's recipe run to its end."""
    out = tmp_path_factory.mktemp("runs") / "seed"
    result = cli.eden("train", "phi3.5-mini", *overrides(data, backbones, out), "--json")
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["artifact"] == str(out)
    assert answer["skipped"] == []
    (out / "stderr.txt").write_text(result.stderr)
    return out


def test_logs_evaluates_and_saves_where_the_recipe_says(finished: Path) -> None:
    """At 10 %, 10 % and 40 % of twenty steps."""
    logged = losses(finished)
    assert [step for step, key, _ in logged if key == "loss"] == list(range(2, 21, 2))
    assert [step for step, key, _ in logged if key == "eval_loss"] == list(range(2, 21, 2))
    # At the end Trainer saves once more.
    assert {path.name for path in finished.glob("checkpoint-*")} == {"checkpoint-8", "checkpoint-16", "checkpoint-20"}


def test_says_what_is_frozen_and_what_trains(finished: Path) -> None:
    shown = {
        line.split()[0]: line.split()[1::2]
        for line in (finished / "stderr.txt").read_text().splitlines()
        if "frozen" in line
    }
    assert set(shown) == {"vision_tower", "projector", "language_model", "lm_head", "lora"}
    projector = 24 + 24 + 24 * 64 + 64 + 64 * 64 + 64
    assert shown["projector"] == [f"{projector:,}", "0"]
    assert shown["vision_tower"][0] == shown["language_model"][0] == shown["lm_head"][0] == "0"


def test_the_artifact_is_complete_and_answers(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert {
        "adapter_config.json",
        "adapter_model.safetensors",
        "config.json",
        "chat_template.jinja",
        "recipe.yaml",
        "training.jsonl",
        "report.html",
        "README.md",
    } <= names
    answer = eden.load(str(finished)).ask("which colour", images=[make_image("red")], max_new_tokens=8)
    assert isinstance(answer, str)
    recipe = load_recipe(finished / "recipe.yaml")
    assert recipe.lora is not None and recipe.lora.r == 64
    report = (finished / "report.html").read_text()
    assert report.count("<svg") == 2 and "which colour" in report and "data:image/png" in report
    card = (finished / "README.md").read_text()
    assert "trained parameters" in card and "eden.load" in card


def at_step(number: int) -> tuple[str, str, int]:
    """Where a run of `overrides` stops: a step's gradients are there, and its weights are not changed yet."""
    return "transformers.trainer", "Trainer.training_step", number


OF_EDEN_TINY = ["vision=null", "language=null", "vision_feature=null", "base=eden-tiny"]
VARIED = [*(f"model.{change}" for change in OF_EDEN_TINY), "data.augment=0.4", "data.features=live"]
"""With a model that looks: what the small random ones say depends on an image by less than 0.001."""


@pytest.fixture(scope="module")
def varied(data: Path, backbones: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With images that are varied in each epoch."""
    out = tmp_path_factory.mktemp("runs") / "varied"
    result = cli.eden("train", "phi3.5-mini", *overrides(data, backbones, out), *VARIED)
    assert result.returncode == 0, result.stderr
    return out


def test_images_to_learn_from_are_varied_in_each_epoch_and_those_held_out_never(
    data: Path, backbones: tuple[Path, Path], tmp_path: Path
) -> None:
    run = Run(load_recipe("phi3.5-mini", [*overrides(data, backbones, tmp_path), *VARIED]), Console(quiet=True))
    run.load()
    run.encode(Start(None))
    for part, is_varied in ((run.train_set, True), (run.eval_set, False)):
        seen = []
        for epoch in (0, 1, 0):
            part.set_epoch(epoch)
            examples = (part[index] for index in range(len(part)))
            seen.append(torch.cat([example["pixel_values"] for example in examples if "pixel_values" in example]))
        assert seen[0].equal(seen[2]) and seen[0].equal(seen[1]) is not is_varied


@pytest.mark.parametrize(("whole", "changes"), [("finished", []), ("varied", VARIED)])
def test_killed_and_resumed_gives_the_losses_of_the_uninterrupted_run(
    whole: str, changes: list[str], data: Path, backbones: tuple[Path, Path], tmp_path: Path, request: Any
) -> None:
    out = tmp_path / "killed"
    arguments = ["train", "phi3.5-mini", *overrides(data, backbones, out), *changes]
    with cli.Python("-m", "eden", *arguments, stop=at_step(11)) as process:
        process.wait_until_stopped()
        process.kill()
    assert losses(out)[-1][0] == 10 and {path.name for path in out.glob("checkpoint-*")} == {"checkpoint-8"}
    with pytest.raises(RecipeError, match=r"learning_rate is 0\.002, and the run began with 0\.001"):
        again(out, data, backbones, "training.learning_rate=2e-3", *changes)
    result = cli.eden(*arguments, "--resume")
    assert result.returncode == 0, result.stderr
    assert "resuming from" in result.stderr
    expected, resumed = losses(request.getfixturevalue(whole)), losses(out)
    assert [row[:2] for row in resumed] == [row[:2] for row in expected]
    assert [row[2] for row in resumed] == pytest.approx([row[2] for row in expected], abs=1e-4)


def test_a_checkpoint_cut_off_while_written_is_passed_over(
    data: Path, backbones: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert cli.eden("train", "phi3.5-mini", *overrides(data, backbones, out, max_steps=5)).returncode == 0
    newest = max(out.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    (newest / "trainer_state.json").unlink()
    result = cli.eden("train", "phi3.5-mini", *overrides(data, backbones, out, max_steps=5), "--resume")
    assert result.returncode == 0, result.stderr
    assert "cut off while being written" in result.stderr


def test_ctrl_c_saves_and_says_how_to_go_on(data: Path, backbones: tuple[Path, Path], tmp_path: Path) -> None:
    """As a terminal sends it: to all processes of the run, those that open images among them."""
    out = tmp_path / "run"
    steps = {"logging_steps": 1, "save_strategy": "no", "dataloader_num_workers": 2}
    arguments = overrides(data, backbones, out, **steps)
    with cli.Python("-m", "eden", "train", "phi3.5-mini", *arguments, stop=at_step(3)) as process:
        process.wait_until_stopped()
        for sign in (signal.SIGINT, signal.SIGCONT):
            os.killpg(process.pid, sign)
        _, stderr = process.communicate()
    assert process.returncode == 130, stderr
    assert "checkpoint written" in stderr and "--resume" in stderr and "Traceback" not in stderr
    assert stderr.count("stopping after this step") == 1
    assert (out / "checkpoint-3" / "trainer_state.json").exists()


def test_a_new_run_does_not_overwrite_an_old_one(finished: Path, data: Path, backbones: tuple[Path, Path]) -> None:
    before = (finished / "adapter_model.safetensors").read_bytes()
    result = cli.eden("train", "phi3.5-mini", *overrides(data, backbones, finished))
    assert result.returncode == 2
    assert "already holds a run" in result.stderr and "--resume" in result.stderr
    assert (finished / "adapter_model.safetensors").read_bytes() == before


def again(out: Path, data: Path, backbones: tuple[Path, Path], *changes: str, said: Console | None = None) -> Any:
    """The run resumed, in this process."""
    recipe = load_recipe("phi3.5-mini", [*overrides(data, backbones, out), *changes])
    return train(recipe, resume=True, console=said or Console(quiet=True))


ANOTHER_RUN = {
    "data.path=other.json": r"recipe\.yaml: data\.path is other\.json, and the run began with .*Set data\.path=",
    "training.learning_rate=5e-4": r"training\.learning_rate is 0\.0005, and the run began with 0\.001\. Set training",
    "training.seed=7": r"training\.seed is 7, and the run began with 42\.",
    "lora.r=8": r"lora\.r is 8, and the run began with 64\.",
    "quantization=null": r"quantization is null, and the run began with {",
    "training.per_device_train_batch_size=4": r"a step reads 4 rows, and the run began with 2\. Choose training",
}


@pytest.mark.parametrize("change", ANOTHER_RUN)
def test_another_recipe_does_not_go_on_with_the_run(
    change: str, finished: Path, data: Path, backbones: tuple[Path, Path]
) -> None:
    with pytest.raises(RecipeError, match=ANOTHER_RUN[change]):
        again(finished, data, backbones, change)


def test_another_data_set_by_the_same_name_does_not_go_on_with_the_run(
    finished: Path, data: Path, backbones: tuple[Path, Path], tmp_path: Path
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "seed"))
    records = json.loads(data.read_text())
    shorter = data.with_name("shorter.json")
    shorter.write_text(json.dumps(records))
    recipe = load_recipe(out / "recipe.yaml", [f"data.path={shorter}"])
    recipe.save(out / "recipe.yaml")
    longer = ["training.max_steps=24", f"data.path={shorter}"]
    assert again(out, data, backbones, *longer).log[-1]["step"] == 24  # the same, read from another file
    before = contents(out)
    shorter.write_text(json.dumps(records[:-1]))
    with pytest.raises(DataError, match=r"run\.json: there are \d+ samples .*the run began with \d+ of .*Bring"):
        again(out, data, backbones, f"data.path={shorter}", "training.max_steps=30")
    assert contents(out) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_nothing_is_trained_of_a_finished_run(finished: Path, data: Path, backbones: tuple[Path, Path]) -> None:
    """Told anew in what does not make it another."""
    before, said = contents(finished), Console(file=io.StringIO())
    same = ["training.per_device_train_batch_size=1", "training.gradient_accumulation_steps=2", "training.seed=42"]
    features = json.loads((finished / "run.json").read_text())["features"]
    result = again(finished, data, backbones, *same, "training.save_steps=0.5", f"data.features={features}", said=said)
    assert "is finished" in said.file.getvalue()
    assert (result.artifact, result.report) == (finished, finished / "report.html")
    assert [row["step"] for row in result.log if "loss" in row] == list(range(2, 21, 2))
    other = {"live": "cached", "cached": "live"}[features]
    with pytest.raises(RecipeError, match=f"data.features is {other}, and the run began with {features}"):
        again(finished, data, backbones, f"data.features={other}")
    assert contents(finished) == before


def test_an_artifact_that_was_cut_off_is_completed(
    finished: Path, data: Path, backbones: tuple[Path, Path], tmp_path: Path
) -> None:
    """Killed after the last step; nothing is trained again."""
    out = Path(shutil.copytree(finished, tmp_path / "seed"))
    (out / "report.html").unlink()
    (out / "adapter_model.safetensors").unlink()
    result = again(out, data, backbones)
    assert losses(out) == losses(finished) and result.log[-1]["step"] == 20
    assert contents(out).keys() == contents(finished).keys()
    for name, weight in load_file(finished / "adapter_model.safetensors").items():
        torch.testing.assert_close(load_file(out / "adapter_model.safetensors")[name], weight, atol=0, rtol=0)
    card = (finished / "README.md").read_text()
    assert "| optimizer steps | 20 |" in card and "| optimizer steps | 20 |" in (out / "README.md").read_text()


class Deletes(Console):
    """A console on whose word that the artifact is saved the pictures are gone."""

    def __init__(self, pictures: list[Path]):
        super().__init__(file=io.StringIO(), width=300)
        self.pictures = pictures

    def status(self, status: Any, **options: Any) -> Any:
        if status == "saving the artifact":
            for path in self.pictures:
                path.rename(f"{path}.gone")
        return super().status(status, **options)


def test_a_report_that_fails_loses_nothing_and_is_made_again(
    data: Path, backbones: tuple[Path, Path], tmp_path: Path
) -> None:
    shutil.copytree(data.parent, tmp_path / "data")
    copied = tmp_path / "data" / data.name
    pictures = [path for path in (tmp_path / "data").rglob("*.*") if path.suffix in (".png", ".jpg")]
    console = Deletes(pictures)
    out = tmp_path / "run"
    result = train(load_recipe("phi3.5-mini", overrides(copied, backbones, out, max_steps=2)), console=console)
    said = console.file.getvalue()
    assert "warning: the report was not written" in said and f"eden report {out}" in said
    assert not result.report.exists() and eden.load(str(out)).ask("which colour", max_new_tokens=2) is not None
    for path in pictures:
        Path(f"{path}.gone").rename(path)
    again_by_hand = cli.eden("report", out, "--json")
    assert again_by_hand.returncode == 0, again_by_hand.stderr
    assert json.loads(again_by_hand.stdout) == {"report": str(out / "report.html")}
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 2 and "which colour" in page and "data:image/png" in page and "optimizer steps" in page
    nowhere = cli.eden("report", tmp_path)
    assert nowhere.returncode == 2 and "no finished run" in nowhere.stderr


class RunsOut(Console):
    """A console on whose word that the artifact is saved there is no memory left to answer anything."""

    def __init__(self) -> None:
        super().__init__(file=io.StringIO(), width=300)
        self.full, self.optimizers = False, 0
        self.before = optimizers()

    def status(self, status: Any, **options: Any) -> Any:
        if status == "saving the artifact":
            self.full, self.optimizers = True, sum(found not in self.before for found in optimizers())
        return super().status(status, **options)

    def run_out(self, module: torch.nn.Module, _: Any) -> None:
        if self.full and isinstance(module, Phi3Model):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def optimizers() -> list[torch.optim.Optimizer]:
    return [found for found in gc.get_objects() if isinstance(found, torch.optim.Optimizer)]


def test_memory_that_runs_out_behind_the_last_step_loses_nothing(
    data: Path, backbones: tuple[Path, Path], tmp_path: Path
) -> None:
    """Not while decisions are calibrated, nor while the report's questions are answered; the optimizer is gone then."""
    records = [
        {"image": f"{index:02d}.png", "question": "which colour", "answer": colour, "choices": COLOURS}
        for index, colour in enumerate(COLOURS * 4)
        if index % 4 != 3
    ]
    path, out, console = data.with_name("choices.json"), tmp_path / "run", RunsOut()
    path.write_text(json.dumps(records))
    settings = overrides(path, backbones, out, max_steps=2)
    hook = register_module_forward_pre_hook(console.run_out)
    try:
        result = train(load_recipe("phi3.5-mini", settings), console=console)
    finally:
        hook.remove()
    said = console.file.getvalue()
    assert "warning: decisions are not calibrated (" in said
    assert "warning: the report was not written (" in said and f"`eden report {out}` makes it again" in said
    assert console.optimizers == 0
    assert result.artifact == out and result.log[-1]["step"] == 2 and not result.report.exists()
    assert (out / "README.md").exists() and eden.load(str(out)).ask("which colour", max_new_tokens=2) is not None
    before = contents(out)
    resumed = cli.eden("train", "phi3.5-mini", *settings, "--resume", "--json")
    assert resumed.returncode == 0 and json.loads(resumed.stdout)["report"] is None
    assert f"the run in {out} is finished" in resumed.stderr and f"`eden report {out}` makes it" in resumed.stderr
    assert contents(out) == before
    assert report(out, Console(quiet=True)).exists()


def test_a_run_without_checkpoints_is_finished_or_cannot_go_on(
    finished: Path, data: Path, backbones: tuple[Path, Path], tmp_path: Path
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "seed", ignore=shutil.ignore_patterns("checkpoint-*")))
    recipe = load_recipe("phi3.5-mini", overrides(data, backbones, out))
    with pytest.raises(RecipeError, match=r"already holds a run\. Choose another training\.output_dir, or delete"):
        train(recipe, console=Console(quiet=True))
    assert again(out, data, backbones).report == out / "report.html"
    with pytest.raises(
        RecipeError, match=r"no checkpoint to resume from\. Choose another training\.output_dir, or delete"
    ):
        again(out, data, backbones, "training.max_steps=40")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("model.vision=openai/clip-vit-bas", "openai/clip-vit-bas: cannot be loaded"),
        ("model.language={clip}", "no language model of type 'clip"),
        ("model.language={empty}", "empty: the folder holds no weights"),
        ("base={phi}", "a model of type 'phi3' cannot see"),
        ("base={adapter}", "gone: no such folder"),
    ],
)
def test_a_model_that_cannot_be_used_costs_no_reading(
    change: str, what: str, backbones: tuple[Path, Path], tmp_path: Path
) -> None:
    """The data, which would be refused as well, are not read before."""
    clip, phi = backbones
    (tmp_path / "data.json").write_text("not JSON")
    shutil.copytree(phi, tmp_path / "empty", ignore=shutil.ignore_patterns("*.safetensors"))
    adapter = tmp_path / "adapter"
    shutil.copytree(EDEN_TINY_FOLDER, adapter)
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "gone")}))
    changes = [change.format(clip=clip, phi=phi, empty=tmp_path / "empty", adapter=adapter)]
    if change.startswith("base"):
        changes = ["model.vision=null", "model.language=null", f"model.{changes[0]}", "model.vision_feature=null"]
    recipe = load_recipe("phi3.5-mini", [*overrides(tmp_path / "data.json", backbones, tmp_path / "run"), *changes])
    with pytest.raises(CheckpointError, match=what):
        train(recipe, console=Console(quiet=True))
    assert not (tmp_path / "run").exists()


def test_a_first_checkpoint_that_was_cut_off_is_no_run(data: Path, tmp_path: Path) -> None:
    """Else neither a new run would begin in the folder nor an old one go on."""
    (tmp_path / "run" / "checkpoint-8").mkdir(parents=True)
    recipe = load_recipe("phi3.5-mini", overrides(data, (tmp_path / "no clip", tmp_path / "no phi"), tmp_path / "run"))
    with pytest.raises(RecipeError, match=r"no checkpoint to resume from\. Run without --resume"):
        train(recipe, resume=True, console=Console(quiet=True))
    with pytest.raises(CheckpointError, match="no clip: no such folder"):
        train(recipe, console=Console(quiet=True))
    assert not (tmp_path / "run" / "checkpoint-8").exists()


@pytest.mark.parametrize("place", ["file", "file/run", "/proc/run"])
def test_a_folder_that_cannot_be_written_is_named_before_anything_is_loaded(
    place: str, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    nowhere = (tmp_path / "no clip", tmp_path / "no phi")
    recipe = load_recipe("phi3.5-mini", overrides(data, nowhere, tmp_path / place))
    with pytest.raises(StorageError, match=r"cannot write .*Check the path and rights"):
        train(recipe, console=Console(quiet=True))


def test_nothing_to_resume(data: Path, backbones: tuple[Path, Path], tmp_path: Path) -> None:
    result = cli.eden("train", "phi3.5-mini", *overrides(data, backbones, tmp_path / "run"), "--resume")
    assert result.returncode == 2
    assert "no checkpoint to resume from" in result.stderr


@pytest.fixture
def faulty(data: Path) -> Path:
    """The data with two bad samples: one without its image, one longer than the model may read."""
    records = json.loads(data.read_text())
    records[3] = {"id": "bad", "image": "gone.png", "conversations": records[0]["conversations"]}
    records[5]["conversations"][0]["value"] = "a" * 500
    records[5].pop("image", None)
    path = data.with_name("faulty.json")
    path.write_text(json.dumps(records))
    return path


def test_a_bad_sample_is_named_before_the_first_step(
    faulty: Path, backbones: tuple[Path, Path], tmp_path: Path
) -> None:
    result = cli.eden("train", "phi3.5-mini", *overrides(faulty, backbones, tmp_path / "run"))
    assert result.returncode == 2
    assert "record 4 (id bad)" in result.stderr and "gone.png" in result.stderr
    assert not (tmp_path / "run").exists()


def test_bad_samples_are_skipped_and_listed_if_asked(
    faulty: Path, backbones: tuple[Path, Path], tmp_path: Path
) -> None:
    arguments = overrides(faulty, backbones, tmp_path / "run", max_steps=2)
    result = cli.eden("train", "phi3.5-mini", *arguments, "data.on_error=skip", "data.max_length=200", "--json")
    assert result.returncode == 0, result.stderr
    skipped = json.loads(result.stdout)["skipped"]
    assert len(skipped) == 2
    assert "gone.png" in skipped[0] and "data.max_length is 200" in skipped[1]
    assert {f"skipped {line}" for line in skipped} <= set(result.stderr.splitlines())  # not wrapped, off a terminal
    assert "gone.png" in (tmp_path / "run" / "report.html").read_text()


NOTHING_LEFT = {
    "to train on": (
        ["data.max_length=3"],
        r"record 1 \(id 00\).*data\.max_length is 3\. Shorten it, or raise data\.max",
    ),
    "to train on, in rows": (
        ["data.row_length=5"],
        r"record 1 \(id 00\).*data\.row_length is 5\. .*raise data\.row_length",
    ),
    "to evaluate on": (
        ["data.max_length=200", "data.eval_fraction=null"],
        r"record 1 \(id long\).*data\.max_length is 200",
    ),
}


@pytest.mark.parametrize("purpose", NOTHING_LEFT)
def test_a_set_of_which_nothing_is_left_is_refused(
    purpose: str, data: Path, backbones: tuple[Path, Path], tmp_path: Path
) -> None:
    changes, message = NOTHING_LEFT[purpose]
    turns = [{"from": "human", "value": "a" * 500}, {"from": "gpt", "value": "b"}]
    (tmp_path / "long.json").write_text(json.dumps([{"id": "long", "conversations": turns}]))
    if "data.eval_fraction=null" in changes:
        changes = [*changes, "data.split_by=null", f"data.eval_path={tmp_path / 'long.json'}"]
    recipe = load_recipe("phi3.5-mini", [*overrides(data, backbones, tmp_path / "run"), "data.on_error=skip", *changes])
    with pytest.raises(DataError, match=message) as caught:
        train(recipe, console=Console(quiet=True))
    assert f"no sample is left {purpose.split(',')[0]}" in str(caught.value)
    assert "on_error" not in str(caught.value)  # it is set
    assert not (tmp_path / "run").exists()


def damaged(folder: Path, is_cut: Callable[[int], bool], number: int = 12) -> Path:
    """Samples with a picture each, which is none from its first bytes on where `is_cut` says so."""
    make_image("red").save(folder / "whole.png")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:60])
    turns = [{"from": "human", "value": "<image>\nwhich colour"}, {"from": "gpt", "value": "red"}]
    records = [
        {"id": str(index), "image": "cut.png" if is_cut(index) else "whole.png", "conversations": turns}
        for index in range(number)
    ]
    path = folder / f"{len(list(folder.iterdir()))}.json"
    path.write_text(json.dumps(records))
    return path


def short(data: Path, eval_data: Path, backbones: tuple[Path, Path], out: Path, *changes: str) -> Recipe:
    """Four steps of two, with an evaluation after two."""
    steps = {"max_steps": 4, "logging_steps": 1, "eval_steps": 2, "save_strategy": "no"}
    held_out = ("data.eval_fraction=null", "data.split_by=null", f"data.eval_path={eval_data}", "data.on_error=skip")
    return load_recipe("phi3.5-mini", [*overrides(data, backbones, out, **steps), *held_out, *changes])


@pytest.mark.parametrize("features", ["live", "cached"])
def test_a_run_whose_images_are_all_damaged_ends_with_the_first_of_them(
    features: str, backbones: tuple[Path, Path], tmp_path: Path
) -> None:
    """In mid-run, when an epoch is over, or before the first step, where the images are known by then."""
    cut, whole = damaged(tmp_path, lambda _: True, 6), damaged(tmp_path, lambda _: False)
    recipe = short(cut, whole, backbones, tmp_path / "run", f"data.features={features}")
    error, what = {
        "live": (RunError, "nothing to learn from in 3 steps: every image is damaged, the first: .*cut.png"),
        "cached": (DataError, "no sample is left to train on; the first one left out: .*cut.png"),
    }[features]
    with pytest.raises(error, match=rf"record 1 \(id 0\): {what}"):
        train(recipe, console=Console(quiet=True))
    assert not (tmp_path / "run" / "adapter_config.json").exists()
    assert not (tmp_path / "run" / "report.html").exists()


def test_an_evaluation_that_sees_nothing_has_no_loss(backbones: tuple[Path, Path], tmp_path: Path) -> None:
    cut, whole, said = damaged(tmp_path, lambda _: True, 3), damaged(tmp_path, lambda _: False), io.StringIO()
    out = tmp_path / "run"
    result = train(short(whole, cut, backbones, out, "data.features=live"), console=Console(file=said, width=200))
    assert said.getvalue().count("no evaluation loss: no held-out sample can be used") == 2
    assert any("eval_runtime" in row for row in result.log) and not any("eval_loss" in row for row in result.log)
    assert "NaN" not in (out / "training.jsonl").read_text()
    assert "evaluation loss" not in (out / "README.md").read_text()
    best = ["training.load_best_model_at_end=true", "training.save_strategy=steps", "training.save_steps=2"]
    with pytest.raises(RunError, match=r"record 1 \(id 0\): no evaluation loss to choose by: every image is damaged"):
        train(short(whole, cut, backbones, tmp_path / "best", "data.features=live", *best), console=Console(quiet=True))


def test_cached_features_leave_out_what_they_cannot_use(backbones: tuple[Path, Path], tmp_path: Path) -> None:
    """Before rows are packed: none of them holds a sample with nothing to learn from."""
    path, other = damaged(tmp_path, lambda index: index % 3 == 0), damaged(tmp_path, lambda _: False)
    held_out, said = damaged(tmp_path, lambda index: index == 1), io.StringIO()
    sources = f"data.sources=[{{path: {path}, weight: 3}}, {{path: {other}}}]"  # 18 samples of 12, and 6 of 12
    changes = ["data.path=null", sources, "data.features=cached", "data.row_length=64"]
    result = train(short(path, held_out, backbones, tmp_path / "run", *changes), console=Console(file=said, width=200))
    expected = {f"{path} record {index + 1} (id {index})" for index in (0, 3, 6, 9)} | {f"{held_out} record 2 (id 1)"}
    assert len(result.skipped) == 5, "each is listed once"
    assert {line.split(": ")[0] for line in result.skipped} == expected
    assert [line for line in said.getvalue().splitlines() if "cut.png" in line] == [
        f"skipped {s}" for s in result.skipped
    ]
    found = re.search(r"(\d+) samples in \d+ rows", said.getvalue())
    assert found is not None and 24 - 8 <= int(found[1]) <= 24 - 4
    assert f"| training samples | {found[1]} |" in (tmp_path / "run" / "README.md").read_text()
    assert all(row["loss"] > 0 for row in result.log if "loss" in row)


def test_a_loss_that_is_no_number_ends_the_run(backbones: tuple[Path, Path], tmp_path: Path) -> None:
    cut, whole = damaged(tmp_path, lambda _: True, 3), damaged(tmp_path, lambda _: False)
    changes = ["data.features=live", "training.learning_rate=1e30", "training.warmup_steps=0"]
    with pytest.raises(RunError, match=r"the loss became nan at step \d.* lower training\.learning_rate"):
        train(short(whole, cut, backbones, tmp_path / "run", *changes), console=Console(quiet=True))
    for line in (tmp_path / "run" / "training.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    assert not (tmp_path / "run" / "adapter_config.json").exists()


def test_a_full_disk_ends_the_run_in_one_line(data: Path, backbones: tuple[Path, Path], tmp_path: Path) -> None:
    """A real full disk: a small file system in memory."""
    mount = tmp_path / "small"
    mount.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "x", mount]).returncode:
        pytest.skip("needs the right to mount")
    try:
        result = cli.eden("train", "phi3.5-mini", *overrides(data, backbones, mount / "run", max_steps=5))
        assert result.returncode == 1, result.stderr
        last = result.stderr.strip().splitlines()[-1]
        assert "the disk is full" in result.stderr and "Free some space" in result.stderr, last
        assert not list((mount / "run").glob("checkpoint-*"))
        assert "Traceback" not in result.stderr
    finally:
        subprocess.run(["umount", mount], check=True)
