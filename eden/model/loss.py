"""The loss without its logits: the head sees supervised positions only, a piece of them at a time."""

from typing import Any

import torch
from torch.distributed.tensor import DTensor

IGNORE_INDEX = -100
PIECE = 256
"""Positions whose logits [PIECE,V] are held at once, in fp32."""


def answer_loss(
    hidden_states: torch.Tensor,
    head: torch.Tensor,
    targets: torch.Tensor,
    num_items_in_batch: torch.Tensor | int,
) -> torch.Tensor:
    """The cross-entropy of the next token, as transformers' `ForCausalLMLoss` gives it on all logits.

    Args:
        hidden_states: of the last layer [B,T,D].
        head: the head's weights [V,D]. They get no gradient: Eden trains no head.
        targets: the token behind each position [B,T], -100 where no loss is taken.
        num_items_in_batch: what the sum is divided by: the supervised positions of a whole step.

    Returns:
        The loss in fp32, with a gradient for `hidden_states`.

    Raises:
        ValueError: the head is in training.
    """
    if head.requires_grad and torch.is_grad_enabled():
        raise ValueError("the head is in training, and this loss has no gradient for it: ask for the logits")
    if isinstance(head, DTensor):  # each process holds a part of it (FSDP)
        head = head.full_tensor()
    targets = targets.to(hidden_states.device)
    supervised = targets != IGNORE_INDEX
    total: torch.Tensor = _SummedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_states[supervised], head, targets[supervised]
    )
    return total / num_items_in_batch


class _SummedCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of K positions; the gradient is made on the way forward, while a piece's logits are there.

    torch's own `linear_cross_entropy` does as much, but gives the loss in the number format of its inputs: in bf16 two
    digits of it.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None  # [K,D]
        total = hidden.new_zeros((), dtype=torch.float32)
        for start in range(0, len(targets), PIECE):
            piece = slice(start, start + PIECE)
            logits = (hidden[piece] @ head.t()).float()  # [PIECE,V]; in place from here on, for it is large
            of_target = targets[piece].unsqueeze(-1)
            target_logits, highest = logits.gather(-1, of_target), logits.amax(-1, keepdim=True)
            exponentials = logits.sub_(highest).exp_()
            sums = exponentials.sum(-1, keepdim=True)
            total += (sums.log() + highest - target_logits).sum()
            if gradient is not None:
                probabilities = exponentials.div_(sums)
                probabilities.scatter_add_(-1, of_target, torch.full_like(of_target, -1, dtype=torch.float32))
                gradient[piece] = probabilities.to(hidden.dtype) @ head
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, None, None]:
        (gradient,) = ctx.saved_tensors
        return None if gradient is None else gradient * upstream[0].to(gradient.dtype), None, None
