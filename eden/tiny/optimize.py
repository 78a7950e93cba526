"""The one training loop of the build."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from rich.console import Console
from transformers import get_cosine_schedule_with_warmup

from ..console import progress

OUTPUT_HEADS = ("lm_head", "proj_out", "ctc_head")


def optimize(
    module: torch.nn.Module,
    loss_of: Callable[[int], torch.Tensor],
    *,
    steps: int,
    learning_rate: float,
    muon_learning_rate: float | None = None,
    name: str,
    console: Console,
) -> None:
    """Minimises the loss of each step, in bf16 where the operations allow it; the rates rise, then fall to nothing.

    Args:
        module: what is trained, all of it.
        loss_of: the loss of a step, counted from 0.
        steps: optimizer steps.
        learning_rate: the highest of AdamW.
        muon_learning_rate: the highest of Muon (https://kellerjordan.github.io/posts/muon/), which then trains the
            matrices of linear layers other than output heads. None leaves these to AdamW, too.
        name: what the progress bar says.
        console: where progress is shown.

    """
    matrices = [] if muon_learning_rate is None else list(_matrices(module))
    chosen = {id(matrix) for matrix in matrices}
    others = [parameter for parameter in module.parameters() if id(parameter) not in chosen]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    ]
    if muon_learning_rate is not None:
        optimizers.append(
            torch.optim.Muon(matrices, lr=muon_learning_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
        )
    schedules = [get_cosine_schedule_with_warmup(optimizer, min(100, steps // 10), steps) for optimizer in optimizers]
    module.train()
    with progress(console) as bar:
        for step in bar.track(range(steps), description=name):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = loss_of(step)
            module.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
            if (step + 1) % 100 == 0:
                bar.console.print(f"{name} step {step + 1} of {steps}: loss {loss.item():.4f}", highlight=False)


def _matrices(module: torch.nn.Module) -> Iterable[torch.Tensor]:
    for name, part in module.named_modules():
        if isinstance(part, torch.nn.Linear) and not name.endswith(OUTPUT_HEADS):
            yield part.weight
