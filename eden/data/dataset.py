"""Samples as training examples: ids and labels are made once, before the first step; pixels when a batch needs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch.utils.data

from ..errors import DataError, ImageError
from ..messages import to_chat
from ..model.processing import IGNORE_INDEX, MultimodalPhiProcessor
from ..vision import open_image
from .formats import Sample


class ConversationDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Examples of `MultimodalPhiProcessor.encode`, without padding.

    Args:
        samples: checked samples (`eden.data.validate.load_samples`).
        processor: of the model in training.
        max_length: the longest example allowed, in tokens; nothing is ever cut off silently.
        on_error: `fail` at the first sample that does not fit, or `skip` it and list it in `skipped`.

    Raises:
        DataError: a sample is longer than `max_length` or has no supervised token; the message names it.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        processor: MultimodalPhiProcessor,
        *,
        max_length: int,
        on_error: Literal["fail", "skip"] = "fail",
        on_progress: Callable[[int, int], None] | None = None,
    ):
        self.processor = processor
        self.samples: list[Sample] = []
        self.skipped: list[DataError] = []
        self._ids: list[np.ndarray[Any, np.dtype[np.int32]]] = []
        self._labels: list[np.ndarray[Any, np.dtype[np.int32]]] = []
        for done, sample in enumerate(samples, 1):
            example = processor.encode(to_chat(sample.messages))
            error = _fault(sample, example, max_length)
            if error is None:
                self.samples.append(sample)
                self._ids.append(np.asarray(example["input_ids"], dtype=np.int32))
                self._labels.append(np.asarray(example["labels"], dtype=np.int32))
            elif on_error == "fail":
                raise error
            else:
                self.skipped.append(error)
            if on_progress is not None:
                on_progress(done, len(samples))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.samples[index]
        example: dict[str, Any] = {"input_ids": self._ids[index], "labels": self._labels[index]}
        sources = [image.source for message in sample.messages for image in message.images]
        if sources:
            try:
                images = [open_image(source) for source in sources]
            except ImageError as error:  # it was fine when the run began
                raise DataError(f"{error.where}: {error.what}", where=sample.where, cure=error.cure) from error
            example["pixel_values"] = self.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        return example

    @property
    def lengths(self) -> list[int]:
        """Tokens of each example."""
        return [len(ids) for ids in self._ids]

    @property
    def supervised_tokens(self) -> int:
        return sum(int((labels != IGNORE_INDEX).sum()) for labels in self._labels)


def _fault(sample: Sample, example: dict[str, Any], max_length: int) -> DataError | None:
    length = len(example["input_ids"])
    if length > max_length:
        return DataError(
            f"the sample has {length:,} tokens, data.max_length is {max_length:,}",
            where=sample.where,
            cure="Shorten it, raise data.max_length, or set data.on_error=skip.",
        )
    if all(label == IGNORE_INDEX for label in example["labels"]):
        return DataError(
            "the sample has no supervised token", where=sample.where, cure="Give it an answer, or drop it."
        )
    return None
