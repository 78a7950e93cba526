"""Trackers as docs/tuning.md tells, without a network; each where its package is installed."""

import os
import sys
from pathlib import Path

import cli
import pytest

TRACKERS = {
    "tensorboard": ("runs/run/runs/*/events.out.tfevents.*", {}),
    "wandb": ("wandb/offline-run-*/run-*.wandb", {"WANDB_MODE": "offline"}),
    "trackio": ("trackio/*.db", {"TRACKIO_DIR": "trackio"}),
}


@pytest.mark.parametrize("name", TRACKERS)
def test_a_run_is_tracked_offline(name: str, data: Path, tmp_path: Path) -> None:
    pytest.importorskip(name)
    kept, settings = TRACKERS[name]
    arguments = ["train", "digits", f"data.path={data}", "data.features=live", "training.max_steps=2"]
    arguments += ["training.output_dir=runs/run", "training.logging_steps=1", f"training.report_to={name}"]
    paths = os.pathsep.join(path for path in sys.path if path)
    result = cli.eden(*arguments, cwd=tmp_path, env=os.environ | settings | {"PYTHONPATH": paths})
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "runs" / "run" / "adapter_model.safetensors").exists()
    assert [path for path in tmp_path.glob(kept) if path.stat().st_size > 0]
