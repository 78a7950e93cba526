"""Twins: pictures that are the same, or nearly so, in two parts of a data set, or with different answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ..checkpoint.vision_encoder import load_vision_encoder
from ..errors import RecipeError
from ..messages import Audio, Image
from ..recipe import Recipe, load_recipe
from .class_folders import TEST, TRAIN, open_class_folders, part_of
from .decisions import Decisions
from .feature_policy import fill
from .features import FeatureStore
from .image_index import Key, Source, source_name
from .prepare import read_data
from .store import Samples, media_of
from .validate import load_samples

RECIPE = "decide"
"""Whose split tells the parts, and whose base's tower the features come from."""
ALIKE = 0.98
"""Cosine of two pictures' features from which on they are twins; docs/data.md has what it finds."""
PARTS = ("training", "held out", "test")


@dataclass(frozen=True)
class Picture:
    """A picture in one part of a data set, its first sample's place, and the answers about it alone, by question."""

    source: Source
    part: str
    where: str
    answers: dict[str, list[str]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its path, or the place of the record that it stands in."""
        return self.where if isinstance(self.source, bytes) else str(self.source)


@dataclass(frozen=True)
class Pair:
    """Two pictures, the same one if it has different answers; `same` says that their files are equal."""

    pictures: tuple[Picture, Picture]
    similarity: float
    same: bool

    @property
    def leak(self) -> bool:
        return self.pictures[0].part != self.pictures[1].part

    @property
    def differ_on(self) -> str | None:
        """A question that they answer differently."""
        one, other = (picture.answers for picture in self.pictures)
        return next((text for text in one if text in other and len({*one[text], *other[text]}) > 1), None)

    def to_dict(self) -> dict[str, Any]:
        one, other = self.pictures
        asked = self.differ_on or next((text for text in one.answers if text in other.answers), "")
        pictures = [
            {"name": of.name, "part": of.part, "where": of.where, "answers": of.answers.get(asked, [])}
            for of in self.pictures
        ]
        said = {"similarity": self.similarity, "same": self.same, "leak": self.leak}
        said["different_answers"] = self.differ_on is not None
        return said | {"question": asked or None, "pictures": pictures}


@dataclass(frozen=True)
class Twins:
    """The pairs of a data set, the most alike first; how many pictures were compared, and why others were not."""

    pairs: list[Pair]
    pictures: int
    unreadable: list[str]

    def to_dict(self) -> dict[str, Any]:
        return {
            "threshold": ALIKE,
            "pictures": self.pictures,
            "leaks": sum(pair.leak for pair in self.pairs),
            "different_answers": sum(pair.differ_on is not None for pair in self.pairs),
            "pairs": [pair.to_dict() for pair in self.pairs],
            "unreadable": self.unreadable,
        }


def find_twins(data: str, images: Path | None, audio: Path | None, console: Console) -> Twins:
    """The twins of a data set; its features are computed where they are not cached.

    Args:
        data: the data set. What the recipe `decide` holds out of it is one part, `test/` of class folders another.
        images: the folder of its images; None is its own.
        audio: the folder of its recordings, which are not heard; None is its own.
        console: where progress is shown.

    Raises:
        DataError, StorageError: as of `read_data`.
    """
    recipe = load_recipe(RECIPE)
    section = {"path": data, "images": images and str(images), "audio": audio and str(audio), "on_error": "skip"}
    try:
        trained, held_out = _read(recipe, section, console)
    except RecipeError:  # too few to hold any out
        trained, held_out = _read(recipe, section | {"eval_fraction": 0.0}, console)
    pictures = pictures_of(dict(zip(PARTS, (trained, held_out, *_test_part(data)), strict=False)))
    sources = {source_name(picture.source): picture.source for picture in pictures}
    if not sources:
        return Twins([], 0, [])
    store = FeatureStore(load_vision_encoder(recipe))
    fill(store, list(sources.values()), console)
    pictures = [picture for picture in pictures if source_name(picture.source) not in store.faults]
    features = [store.features(picture.source).flatten().float() for picture in pictures]
    keys = [store.key(picture.source) for picture in pictures]
    pairs = pairs_of(pictures, torch.stack(features), keys) if pictures else []
    return Twins(pairs, len(sources) - len(store.faults), list(store.faults.values()))


def _read(recipe: Recipe, section: dict[str, Any], console: Console) -> tuple[Samples, Samples]:
    changed = recipe.model_copy(update={"data": recipe.data.model_copy(update=section)})
    return read_data(changed, console, hear=False)[:2]


def _test_part(data: str) -> list[Samples]:
    """The class folders in `test/`, if there are any: a run does not read them."""
    folder = Path(data)
    if part_of(folder, TRAIN) == folder or not all(map(open_class_folders, (folder, folder / TEST))):
        return []
    return [load_samples(folder / TEST, on_error="skip", look="listed")[0]]


def pictures_of(parts: Mapping[str, Samples]) -> list[Picture]:
    """The pictures of all parts, one that is in two of them twice."""
    decisions = Decisions(Samples.joined(list(parts.values())))
    found: dict[tuple[str, str], Picture] = {}
    for part, samples in parts.items():
        for sample in samples:
            media = media_of(sample)
            sources: list[Any] = [item.source for item in media if isinstance(item, Image)]
            for source in sources:
                picture = found.setdefault((part, source_name(source)), Picture(source, part, sample.where))
            if len(sources) != 1 or any(isinstance(item, Audio) for item in media):
                continue  # the answer is not one to a written question about this picture
            if (answers := decisions.of(sample)) is not None:
                said = picture.answers.setdefault(sample.messages[-2].text, [])
                answer = answers.answers[answers.index(sample.messages[-1].text) or 0]
                said += [answer] if answer not in said else []
    return list(found.values())


def pairs_of(pictures: Sequence[Picture], features: torch.Tensor, keys: Sequence[Key]) -> list[Pair]:
    """Each picture not trained on with its twin in another part, and each picture with its twin of another answer.

    Of several twins it is the most alike. `features` are [N,D], of the N pictures, as are the keys of their contents.
    """
    features = torch.nn.functional.normalize(features, dim=1)
    part = torch.tensor([PARTS.index(picture.part) for picture in pictures])
    searches = [(torch.arange(len(pictures)), part, part.nonzero().flatten())]
    answered: dict[str, list[tuple[int, int]]] = defaultdict(list)
    codes: dict[str, int] = {}
    for index, picture in enumerate(pictures):
        for question, answers in picture.answers.items():
            answered[question] += [(index, codes.setdefault(answer, len(codes))) for answer in answers]
    searches += [(*torch.tensor(rows).T, torch.arange(len(rows))) for rows in answered.values()]
    found: dict[tuple[int, int], float] = {}
    for indices, groups, asked in searches:
        similarity, places = nearest(features[indices], groups, asked)
        twins = similarity >= ALIKE
        of_pairs = torch.stack([indices[asked], indices[places]], dim=1)[twins].sort(dim=1).values
        for (first, second), value in zip(of_pairs.tolist(), similarity[twins].tolist(), strict=True):
            found[first, second] = 1.0 if keys[first] == keys[second] else min(value, 1.0)
    pairs = [Pair((pictures[i], pictures[j]), value, keys[i] == keys[j]) for (i, j), value in found.items()]
    return sorted(pairs, key=lambda pair: (not pair.same, -pair.similarity))


def nearest(
    features: torch.Tensor, groups: torch.Tensor, asked: torch.Tensor, block: int = 1024
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of some rows the most alike row of another group; never more than a block of the similarities at once.

    Args:
        features: [N,D], of length 1.
        groups: [N], numbers.
        asked: [R], indices of rows.
        block: rows at once.

    Returns:
        Cosines [R], -inf where there is no other group, and indices [R].
    """
    values, places = torch.full((len(asked),), -torch.inf), torch.zeros(len(asked), dtype=torch.long)
    for start in range(0, len(asked), block):
        rows = asked[start : start + block]
        alike = features[rows] @ features.T
        alike.masked_fill_(groups[rows, None] == groups, -torch.inf)
        values[start : start + block], places[start : start + block] = alike.max(dim=1)
    return values, places
