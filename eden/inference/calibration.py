"""Fitting how sure a model may be: a temperature for each kind of question and number of answers, on held-out samples.

Source: C. Guo et al., On calibration of modern neural networks, https://arxiv.org/abs/1706.04599.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoint.calibration import LEAST_SAMPLES, Calibration, Fitted
from ..core.answers import AnswerSet
from ..data.formats import Sample
from .assistant import Assistant
from .decisions import Decision

WIDEST = 3.0
"""The logarithm of a temperature is looked for from minus this to this."""
PRIOR = 1.0
"""The spread of logarithms of temperatures that is expected. Beside a few dozen samples it weighs nothing; where all
answers are right and certain it keeps the temperature from going to 0."""
BINS = 15
"""Of probabilities, of equal width, as most papers have them."""
FOLDS = 5
"""Of samples that temperatures are fitted on and judged by."""
CURVE = 200
"""Points of the risk-coverage curve."""

Numbers = NDArray[np.float64]


def fit(answers: Sequence[AnswerSet], logs: Sequence[Sequence[float]], truth: Sequence[int]) -> dict[str, Fitted]:
    """What fits samples that the model was not trained on: temperatures by `AnswerSet.key`, where there are enough.

    Args:
        answers: that each sample may have.
        logs: logarithmic probabilities of them.
        truth: the place of the right one.
    """
    found = {}
    for key, places in by_key(answers).items():
        if len(places) >= LEAST_SAMPLES:
            scores, right = np.array([logs[place] for place in places]), np.array([truth[place] for place in places])
            found[key] = Fitted(fit_temperature(scores, right), len(places))
    return found


def calibrate(
    assistant: Assistant, samples: Sequence[tuple[Sample, AnswerSet]], questions: Mapping[str, AnswerSet]
) -> tuple[Calibration, dict[str, Any]]:
    """Has a model decide samples that it was not trained on, and fits what there are enough of.

    Args:
        assistant: the model.
        samples: each with the answers that its question may have, its own among them.
        questions: those that the model is to know, with their answers.

    Returns:
        The calibration, and how far it can be trusted (`trust`).

    Raises:
        ImageError, ContextError: a sample cannot be asked.
    """
    answers = [of for _, of in samples]
    logs = assistant.score_answers(
        [sample.messages[:-1] for sample, _ in samples], answers, where=[sample.where for sample, _ in samples]
    )
    truth = [place for sample, of in samples if (place := of.index(sample.messages[-1].text)) is not None]
    return Calibration(fit(answers, logs, truth), questions), trust(answers, logs, truth)


def trust(answers: Sequence[AnswerSet], logs: Sequence[Sequence[float]], truth: Sequence[int]) -> dict[str, Any]:
    """What a page draws of held-out samples: reliability before and after calibration, and what refusing buys.

    Each is judged by temperatures fitted on the others. Empty if none can be fitted.
    """
    found: dict[str, Any] = {"n": len(answers), "reliability": {}}
    after = cross_fitted(answers, logs, truth)
    if not any(after):
        return {}
    sides: dict[str, Sequence[Fitted | None]] = {"before": [None] * len(answers), "after": after}
    for side, fitted in sides.items():
        decided = [Decision.of(of, log, None, by) for of, log, by in zip(answers, logs, fitted, strict=True)]
        probabilities = np.array([decision.probability for decision in decided])
        rights = zip(answers, decided, truth, strict=True)
        right = np.array([of.answers[place] == decision.answer for of, decision, place in rights])
        found["reliability"][side] = reliability(probabilities, right)
        found["curve"] = curve(probabilities, right)
    return found


def cross_fitted(
    answers: Sequence[AnswerSet], logs: Sequence[Sequence[float]], truth: Sequence[int]
) -> list[Fitted | None]:
    """For each sample what is fitted on those that are not of its fold: who fits and judges on the same is too good."""
    fold = np.random.default_rng(0).permutation(len(answers)) % FOLDS
    found: list[Fitted | None] = [None] * len(answers)
    for number in range(FOLDS):
        others = np.flatnonzero(fold != number).tolist()
        fitted = fit([answers[i] for i in others], [logs[i] for i in others], [truth[i] for i in others])
        for place in np.flatnonzero(fold == number).tolist():
            found[place] = fitted.get(answers[place].key)
    return found


def by_key(answers: Sequence[AnswerSet]) -> Mapping[str, list[int]]:
    """The samples of each kind of question and number of answers."""
    places = defaultdict(list)
    for place, of in enumerate(answers):
        places[of.key].append(place)
    return places


def fit_temperature(scores: Numbers, truth: NDArray[np.int64]) -> float:
    """The likeliest temperature of scores [n,K], the right ones being at `truth` [n]."""

    def cost(logarithm: float) -> float:
        return float(nll(scores, truth, np.exp(logarithm)).sum() + logarithm**2 / (2 * PRIOR**2))

    points = np.linspace(-WIDEST, WIDEST, 61)
    for _ in range(3):  # each time twenty times as fine
        best = int(np.argmin([cost(point) for point in points]))
        points = np.linspace(points[max(0, best - 1)], points[min(len(points) - 1, best + 1)], 41)
    return round(float(np.exp(points[np.argmin([cost(point) for point in points])])), 4)


def nll(scores: Numbers, truth: NDArray[np.int64], temperature: float = 1.0) -> Numbers:
    """The negative logarithmic probability [n] of the right answers."""
    scaled = (scores - scores.max(-1, keepdims=True)) / temperature
    wanted: Numbers = np.log(np.exp(scaled).sum(-1)) - np.take_along_axis(scaled, truth[:, None], -1)[:, 0]
    return wanted


def reliability(probabilities: Numbers, right: NDArray[np.bool_]) -> list[dict[str, float]]:
    """Of each bin of likeliest answers [n] that has any: how many, their mean probability, the share of right ones."""
    bins = np.minimum(BINS - 1, (probabilities * BINS).astype(int))
    found = []
    for number in np.unique(bins):
        inside = bins == number
        mean, share = probabilities[inside].mean(), right[inside].mean()
        found.append({"n": int(inside.sum()), "probability": round(mean, 4), "right": round(share, 4)})
    return found


def curve(probabilities: Numbers, right: NDArray[np.bool_]) -> list[tuple[float, float]]:
    """The share answered and the share of these that is wrong, the surest first, at up to `CURVE` places."""
    order = np.argsort(-probabilities, kind="stable")
    errors = np.cumsum(~right[order]) / np.arange(1, len(order) + 1)
    last = np.flatnonzero(np.append(np.diff(probabilities[order]) != 0, True))  # equals go together
    places = last[np.unique(np.linspace(0, len(last) - 1, CURVE).round().astype(int))]
    return [(round((place + 1) / len(order), 4), round(float(errors[place]), 4)) for place in places.tolist()]


def threshold(probabilities: Numbers, right: NDArray[np.bool_], max_error: float) -> float | None:
    """The lowest probability [n] from which on at most a share `max_error` of the answers is wrong.

    Returns:
        None if not even the surest answers are that often right.
    """
    order = np.argsort(-probabilities, kind="stable")
    errors = np.cumsum(~right[order]) / np.arange(1, len(order) + 1)
    last = np.append(np.diff(probabilities[order]) != 0, True)  # of equals all are answered or none
    good = np.flatnonzero((errors <= max_error) & last)
    return float(probabilities[order][good[-1]]) if len(good) else None
