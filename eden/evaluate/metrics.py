"""Measures, and how sure they are: bootstrap intervals of one run and of the difference between two.

A measure is a ratio of two sums over the questions: accuracy is what was right over what was asked, precision is what
was rightly called yes over what was called yes. So a measure of a resample needs its sums only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Scores: TypeAlias = Mapping[str, float]
"""What one answer earned, by name, the same names for every question of a task."""
Interval: TypeAlias = tuple[float, float]
Sums: TypeAlias = NDArray[np.float64]

ASKED = "asked"
"""The score that every question earns: 1."""
RESAMPLES, SEED, LEVEL = 2000, 0, 0.95
DRAWN_AT_ONCE = 2**22
"""Numbers held while resampling; 32 MiB."""


@dataclass(frozen=True)
class Measure:
    """The sum of the scores named in `top` over the sum of those in `bottom`; 0 where the latter is 0."""

    top: tuple[str, ...]
    bottom: tuple[str, ...] = (ASKED,)
    factor: float = 1.0

    def of(self, sums: Sums, names: Sequence[str]) -> Sums:
        """The measure of each row of sums `[..., C]`, the C scores in the order of `names`."""
        top = sum(sums[..., names.index(name)] for name in self.top) * self.factor
        bottom = np.asarray(sum(sums[..., names.index(name)] for name in self.bottom))
        return np.divide(top, bottom, out=np.zeros_like(bottom), where=bottom != 0)


def table(scores: Sequence[Scores]) -> tuple[Sums, list[str]]:
    """Scores as an array `[n, C]` with the names of its columns, `asked` the first."""
    names = [ASKED, *(scores[0] if scores else ())]
    rows = [[1.0, *score.values()] for score in scores]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(names)), names


def value(measure: Measure, scores: Sequence[Scores]) -> float:
    """A measure of these answers; not a number where nothing was asked."""
    if not scores:
        return float("nan")
    rows, names = table(scores)
    return float(measure.of(rows.sum(0), names))


def intervals(measures: Mapping[str, Measure], scores: Sequence[Scores]) -> dict[str, Interval]:
    """The bootstrap interval of each measure, by name."""
    rows, names = table(scores)
    return bootstrap(rows, {key: partial(measure.of, names=names) for key, measure in measures.items()})


def differences(
    measures: Mapping[str, Measure],
    scores: Sequence[Scores],
    others: Sequence[Scores],
    clusters: Sequence[str] | None = None,
) -> dict[str, tuple[float, Interval]]:
    """Each measure of the first answers less that of the second to the same questions, and its interval.

    Paired: a resample takes both answers to a question or neither, so what makes a question hard for both cancels out.

    Args:
        measures: by name.
        scores: of the first answers.
        others: of the second, in the same order.
        clusters: the cluster of each question, whose questions are right or wrong together; resampled are whole
            clusters then (the cluster bootstrap). None: each question by itself.
    """
    rows, names = table(scores)
    both = np.concatenate([rows, table(others)[0]], axis=1)

    def less(measure: Measure, sums: Sums) -> Sums:
        return measure.of(sums[..., : len(names)], names) - measure.of(sums[..., len(names) :], names)

    drawn = both if clusters is None else _cluster_sums(both, clusters)
    found = bootstrap(drawn, {key: partial(less, measure) for key, measure in measures.items()})
    return {key: (float(less(measure, both.sum(0))), found[key]) for key, measure in measures.items()}


def bootstrap(rows: Sums, statistics: Mapping[str, Callable[[Sums], Sums]]) -> dict[str, Interval]:
    """Percentile intervals of statistics of the column sums, at 95 %; the same rows give the same intervals.

    Args:
        rows: `[n, C]`, one for each question.
        statistics: by name, from sums `[R, C]` of R resamples to R values.

    Source: B. Efron, Bootstrap methods: another look at the jackknife, 1979.
    """
    sums = _resampled_sums(rows)
    tail = 100 * (1 - LEVEL) / 2
    found = {}
    for name, statistic in statistics.items():
        low, high = np.percentile(statistic(sums), [tail, 100 - tail])
        found[name] = (float(low), float(high))
    return found


def _cluster_sums(rows: Sums, clusters: Sequence[str]) -> Sums:
    """The column sums of each cluster's rows, `[K, C]`."""
    places = {name: place for place, name in enumerate(dict.fromkeys(clusters))}
    sums = np.zeros((len(places), rows.shape[1]))
    np.add.at(sums, [places[name] for name in clusters], rows)
    return sums


def _resampled_sums(rows: Sums) -> Sums:
    """Column sums `[R, C]` of R samples of n rows, drawn with replacement.

    How often each distinct row is drawn is multinomial. Most tasks have few distinct rows (right and wrong), so this
    costs little even for hundreds of thousands of questions.
    """
    distinct, numbers = np.unique(rows, axis=0, return_counts=True)
    shares = numbers / len(rows)
    generator = np.random.default_rng(SEED)
    at_once = max(1, DRAWN_AT_ONCE // len(distinct))
    parts = []
    for start in range(0, RESAMPLES, at_once):
        drawn = generator.multinomial(len(rows), shares, size=min(at_once, RESAMPLES - start))
        parts.append(drawn @ distinct)
    return np.concatenate(parts)
