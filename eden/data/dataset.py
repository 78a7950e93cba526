"""Samples as training examples: ids and labels are made once, before the first step; an image when a batch needs it.

An image comes as pixels, or, once the data set was given a cache of them, as the features that the tower made of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import PIL.Image
import torch
import torch.utils.data

from ..core import distributed
from ..errors import DataError, ImageError
from ..media.augment import vary
from ..media.images import open_image
from ..model.loss import IGNORE_INDEX
from ..model.processing import MultimodalPhiProcessor
from ..model.tiling import pixels_of
from .features import FeatureStore
from .formats import Sample
from .image_index import Source, source_name
from .store import Progress, SampleList, Samples
from .tokens import TokenTable

_GREY = PIL.Image.new("RGB", (64, 64), (128, 128, 128))


class ConversationDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Examples of `MultimodalPhiProcessor.encode`, without padding.

    Args:
        samples: checked samples (`eden.data.validate.load_samples`); their tokens are kept in Eden's cache.
        processor: of the model in training.
        max_length: the longest example allowed, in tokens; nothing is ever cut off silently.
        row_length: of the rows that examples will be packed into, if they will be; none may be longer.
        augment: how far images are varied at random (`eden.media.augment.vary`), in each epoch otherwise; None is not.
        on_error: `fail` at the first sample that does not fit, or `skip` it and list it in `skipped`. An image that
            turns out damaged in mid-run is an error of its sample, or is left out of the loss and listed in `damaged`.
        on_progress: called as samples are encoded.

    Raises:
        DataError: a sample is longer than `max_length` or a row, or has no supervised token; the message names it.
        StorageError: the cache is not writable.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        processor: MultimodalPhiProcessor,
        *,
        max_length: int,
        row_length: int | None = None,
        augment: float | None = None,
        on_error: Literal["fail", "skip"] = "fail",
        on_progress: Progress | None = None,
    ):
        self.processor = processor
        self.skipped: list[DataError] = []
        self._on_error, self._augment = on_error, augment
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # with the processes of a data loader
        samples = samples if isinstance(samples, Samples) else Samples.of(SampleList(samples))
        self._tokens = [TokenTable(store, processor, on_progress) for store in samples.stores]
        self._features: FeatureStore | None = None
        self._leave_out(samples, self._faults(samples, max_length, row_length))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.samples[index]
        ids, labels = self._tokens[self.samples.source[index]][int(self.samples.row[index])]
        example: dict[str, Any] = {"input_ids": ids, "labels": labels}
        if sources := _images_of(sample):
            number = int((ids == self.processor.image_token_id).sum()) // self.processor.num_image_tokens  # I
            try:
                example |= self._images(sources, index, number)
            except ImageError as error:  # it was there when the run began
                if self._on_error == "fail":
                    raise DataError(error.fault.at(sample.where)) from error
                self.damage[index] = True
                example["labels"] = np.full_like(labels, IGNORE_INDEX)
                example |= self._no_images(number)
        return example

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch. Images are varied by it and their sample alone: a resumed run sees the same."""
        self._epoch[0] = epoch

    def use_features(self, features: FeatureStore) -> list[DataError]:
        """Takes images as features from now on, and leaves out the samples whose images gave none.

        Of several processes all must ask: what one of them cannot use, all leave out.

        Args:
            features: filled with the samples' images.

        Returns:
            Why samples were left out; they are in `skipped`, too.

        Raises:
            DataError: an image cannot be used, and `on_error` is `fail`; the message names its sample.
        """
        self._features = features
        faulty = features.faulty(self.samples)
        unusable = torch.zeros(len(self), dtype=torch.int32)
        unusable[list(faulty)] = 1
        of_all = torch.nonzero(distributed.summed(unusable)).flatten().tolist()
        return self._leave_out(self.samples, ((index, faulty.get(index) or self._elsewhere(index)) for index in of_all))

    def _elsewhere(self, index: int) -> DataError:
        return DataError("another process cannot use its image", where=self.samples[index].where)

    def _leave_out(self, samples: Samples, faults: Iterable[tuple[int, DataError]]) -> list[DataError]:
        """Takes the samples that are not among the faulty ones, which are listed."""
        fits, listed = np.ones(len(samples), dtype=bool), {}
        for index, error in faults:
            if self._on_error == "fail":
                raise error
            fits[index] = False
            listed[str(error)] = error  # once, though a mix may hold a sample more than once
        self.samples = samples.take(np.flatnonzero(fits))
        # In memory that the processes of a data loader share: they find the damage, this one reports it.
        self.damage = torch.zeros(len(self.samples), dtype=torch.bool).share_memory_()
        self.skipped += listed.values()
        return list(listed.values())

    def _images(self, sources: Sequence[Source], index: int, number: int) -> dict[str, torch.Tensor]:
        """The `number` images of one sample: `image_features` [I,N,Dv] or `pixel_values` [I,3,H,W]."""
        if self._features is not None:
            features = torch.cat([self._features.features(source) for source in sources])
            found = {"image_features": features.view(-1, *self._features.shape)}
        else:
            found = {"pixel_values": self.processor.image_pixels(self._opened(sources, index))}
        if any(len(images) != number for images in found.values()):
            names, hint = ", ".join(map(source_name, sources)), "Run the same command again."
            raise ImageError("an image changed its size in mid-run", where=names, hint=hint, kind="damaged_image")
        return found

    def _opened(self, sources: Sequence[Source], index: int) -> list[PIL.Image.Image]:
        images = [open_image(source) for source in sources]
        if self._augment is not None:
            seeds = [f"{int(self._epoch)} {index} {number}" for number in range(len(images))]
            images = [vary(image, self._augment, seed) for image, seed in zip(images, seeds, strict=True)]
        return images

    def _no_images(self, number: int) -> dict[str, torch.Tensor]:
        """What stands for the I images of a sample that is left out of the loss."""
        if self._features is not None:
            return {"image_features": torch.zeros(number, *self._features.shape)}
        return {"pixel_values": pixels_of([_GREY] * number, self.processor.image_processor, tiles=0)}

    def check_not_empty(self, purpose: str) -> None:
        """Sees that there is something left.

        Args:
            purpose: what the samples are for, in the message.

        Raises:
            DataError: every sample was left out; the message names the first of them and what is wrong with it.
        """
        if not len(self):
            if not self.skipped:
                raise DataError(f"no sample is left {purpose}", where="data", hint="Give some.")
            first = self.skipped[0].fault
            what = f"no sample is left {purpose}; the first one left out: {first.what}"
            raise DataError(replace(first, what=what))

    def is_whole(self, index: int) -> bool:
        """Whether the sample's images can be opened; with `on_error="fail"`, one that cannot is a DataError."""
        self[index]
        return not bool(self.damage[index])

    def damaged(self, damage: torch.Tensor | None = None) -> list[DataError]:
        """Samples that were left out of the loss in mid-run because an image could not be opened.

        Args:
            damage: which they are, as all processes of a run together know; None is as this one does.
        """
        return list(self._damaged(self.damage if damage is None else damage))

    def first_damaged(self, damage: torch.Tensor) -> DataError | None:
        """The first of `damaged`."""
        return next(self._damaged(damage), None)

    def _damaged(self, damage: torch.Tensor) -> Iterator[DataError]:
        listed = set()
        for index in torch.nonzero(damage).flatten().tolist():
            sample = self.samples[index]
            for image in _images_of(sample):
                try:
                    open_image(image)
                except ImageError as error:
                    found = DataError(error.fault.at(sample.where))
                    if str(found) not in listed:  # a mix may hold a sample more than once
                        yield found
                    listed.add(str(found))

    @property
    def lengths(self) -> np.ndarray[Any, np.dtype[np.int32]]:
        """Tokens of each example."""
        return self._of_rows(self.samples, "lengths")

    @property
    def supervised_tokens(self) -> int:
        return int(self._of_rows(self.samples, "supervised").sum())

    def _of_rows(self, samples: Samples, column: str) -> np.ndarray[Any, np.dtype[np.int32]]:
        numbers = np.zeros(len(samples), dtype=np.int32)
        for source, tokens in enumerate(self._tokens):
            chosen = samples.source == source
            numbers[chosen] = getattr(tokens, column)[samples.row[chosen]]
        return numbers

    def _faults(self, samples: Samples, max_length: int, row_length: int | None) -> Iterator[tuple[int, DataError]]:
        """The samples that cannot be trained on, in order, and why."""
        lengths, supervised = self._of_rows(samples, "lengths"), self._of_rows(samples, "supervised")
        limit, name = max_length, "data.max_length"
        if row_length is not None and row_length < max_length:
            limit, name = row_length, "data.row_length"
        skip = ", or set data.on_error=skip" if self._on_error == "fail" else ""
        for index in np.flatnonzero((lengths > limit) | (supervised == 0)):
            sample, row = samples[int(index)], int(samples.row[index])
            what, hint = "the sample has no supervised token", "Give it an answer, or drop it."
            if fault := self._tokens[samples.source[index]].faults.get(row):
                what, hint = fault, "Remove it; the chat template writes the control tokens."
            elif lengths[index] > limit:
                what = f"the sample has {lengths[index]:,} tokens, {name} is {limit:,}"
                hint = f"Shorten it, or raise {name}{skip}."
            yield int(index), DataError(what, where=sample.where, hint=hint)


def _images_of(sample: Sample) -> list[Source]:
    return [image.source for message in sample.messages for image in message.images]  # type: ignore[misc]
