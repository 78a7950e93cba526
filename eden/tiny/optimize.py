"""The one training loop of the build."""

from __future__ import annotations

from collections.abc import Callable

import torch
from rich.console import Console

from ..console import progress


def optimize(
    module: torch.nn.Module,
    loss_of: Callable[[int], torch.Tensor],
    *,
    steps: int,
    learning_rate: float,
    name: str,
    console: Console,
) -> None:
    """Minimises the loss of each step with AdamW on a one-cycle schedule, in bf16 where the operations allow it."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps + 1, pct_start=0.1)
    module.train()
    with progress(console) as bar:
        for step in bar.track(range(steps), description=name):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = loss_of(step)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if (step + 1) % 100 == 0:
                bar.console.print(f"{name} step {step + 1} of {steps}: loss {loss.item():.4f}", highlight=False)
