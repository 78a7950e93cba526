"""The one training loop of the build."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from rich.console import Console
from transformers import get_cosine_schedule_with_warmup

from eden.core.console import progress
from eden.core.numeric_format import Machine, numeric_format

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
    """Minimises the loss of each step, in bf16 where the CPU has units for it; the rates rise, then fall to nothing.

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
        optimizers.append(Muon(matrices, {"lr": muon_learning_rate, "weight_decay": 0.05, "momentum": 0.95}))
    schedules = [get_cosine_schedule_with_warmup(optimizer, min(100, steps // 10), steps) for optimizer in optimizers]
    module.train()
    in_bf16 = numeric_format(Machine.here("cpu")).name == "bfloat16"
    with progress(console) as bar:
        for step in bar.track(range(steps), description=name):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=in_bf16):
                loss = loss_of(step)
            module.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
            if (step + 1) % 100 == 0:
                bar.console.print(f"{name} step {step + 1} of {steps}: loss {loss.item():.4f}", highlight=False)


class Muon(torch.optim.Optimizer):
    """Muon as torch has it, with the update's size that of AdamW; torch's computes in bf16 on every machine.

    Source: https://kellerjordan.github.io/posts/muon/; the size, https://arxiv.org/abs/2502.16982.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                momentum = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
                momentum.lerp_(matrix.grad, 1 - group["momentum"])
                update = _orthogonal(matrix.grad.lerp(momentum, group["momentum"]))
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-group["lr"] * 0.2 * max(matrix.shape) ** 0.5)


def _orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Newton-Schulz iteration: the matrix with its singular values near 1."""
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), wide, beta=3.4445)
    return wide.T if matrix.shape[0] > matrix.shape[1] else wide


def _matrices(module: torch.nn.Module) -> Iterable[torch.Tensor]:
    for name, part in module.named_modules():
        if isinstance(part, torch.nn.Linear) and not name.endswith(OUTPUT_HEADS):
            yield part.weight
