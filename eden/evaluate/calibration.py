"""How good probabilities of decisions are: accuracy, NLL, Brier score, calibration error, and what refusing costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from ..checkpoint.calibration import LEAST_SAMPLES, Calibration
from ..core.answers import AnswerSet
from ..core.console import progress
from ..errors import InputError
from ..inference.assistant import Assistant
from ..inference.calibration import BINS, by_key, cross_fitted, curve, fit, reliability, threshold
from ..inference.decisions import Decision
from .blind import looks, without_pictures
from .metrics import ASKED, Interval, Measure, Sums, bootstrap, table
from .task import Question, Task

MEASURES = {name: Measure((name,)) for name in ("accuracy", "nll", "brier")}
ECE = "ece"
DRAWS = 1000
"""Of answers, to see how large an ECE chance alone makes."""
LEAST = 1e-12
"""A probability that is rounded to 0 counts as this."""
LARGEST_TABLE = 20
"""Answers of a table of confusions."""
ERRORS = (0.005, 0.01, 0.02, 0.05, 0.1)
"""Shares of wrong answers that coverage is given for."""


@dataclass(frozen=True)
class Calibrated:
    """Decisions with the right answers.

    Attributes:
        decisions: n of them.
        truth: the right answer of each.
    """

    decisions: Sequence[Decision]
    truth: Sequence[str]

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """Of the likeliest answers [n]."""
        return np.array([decision.probability for decision in self.decisions])

    @property
    def right(self) -> NDArray[np.bool_]:
        """Which of the likeliest answers are right [n]."""
        return np.array([of.answer == truth for of, truth in zip(self.decisions, self.truth, strict=True)])

    def measures(self) -> dict[str, tuple[float, Interval]]:
        """Accuracy, NLL, Brier score and expected calibration error, with 95 % intervals.

        The error is resampled like the others; it is never below 0, so that of few samples its interval stands high.
        Sources: G. Brier, 1950; C. Guo et al., https://arxiv.org/abs/1706.04599.
        """
        rows, names = table([self._scores(*item) for item in zip(self.decisions, self.truth, strict=True)])
        statistics = {name: partial(measure.of, names=names) for name, measure in MEASURES.items()}
        statistics[ECE] = partial(_ece, names=names)
        found = bootstrap(rows, statistics)
        return {name: (float(of(rows.sum(0))), found[name]) for name, of in statistics.items()}

    @staticmethod
    def _scores(decision: Decision, truth: str) -> dict[str, float]:
        top, right = decision.probability, float(decision.answer == truth)
        of_bin = min(BINS - 1, int(top * BINS))
        gaps = {f"bin {number}": top - right if number == of_bin else 0.0 for number in range(BINS)}
        return {
            "accuracy": right,
            "nll": -float(np.log(max(LEAST, decision.probabilities[truth]))),
            "brier": sum((p - (answer == truth)) ** 2 for answer, p in decision.probabilities.items()),
            **gaps,
        }

    def coverage(self, threshold: float) -> tuple[float, float]:
        """The share of questions answered from a probability on, and the share of these answers that is wrong."""
        answered = self.probabilities >= threshold
        return float(answered.mean()), float((~self.right[answered]).mean()) if answered.any() else 0.0

    def ece_by_chance(self) -> float:
        """The mean ECE of as many answers whose probabilities are exactly right, each drawn by its own; seeded."""
        top = self.probabilities
        gaps = top - (np.random.default_rng(0).random((DRAWS, len(top))) < top)
        in_bin = np.eye(BINS)[np.minimum(BINS - 1, (top * BINS).astype(int))]
        return float(np.abs(gaps @ in_bin).sum(-1).mean() / len(top))

    def reliability(self) -> list[dict[str, float]]:
        """`inference.calibration.reliability` of them."""
        return reliability(self.probabilities, self.right)

    def curve(self) -> list[tuple[float, float]]:
        """`inference.calibration.curve` of them."""
        return curve(self.probabilities, self.right)


def _ece(sums: Sums, names: Sequence[str]) -> Sums:
    """Of sums `[..., C]`: a bin's gap is the sum of its probabilities less its right answers."""
    gaps = [names.index(name) for name in names if name.startswith("bin ")]
    found: Sums = np.abs(sums[..., gaps]).sum(-1) / sums[..., names.index(ASKED)]
    return found


@dataclass(frozen=True)
class DecisionResult:
    """The decisions of a task.

    Attributes:
        questions: what was decided.
        answers: that each question may have.
        before: with the model's own probabilities.
        after: with the temperatures that the model has, or that were fitted here.
        calibration: what the model has now, and is to keep.
        fitted_here: the temperatures are of these questions; each is judged by those of the others.
        looks: what their pictures are worth (`blind.looks`); None if that was not asked, or none has a picture.
    """

    questions: Sequence[Question]
    answers: Sequence[AnswerSet]
    before: Calibrated
    after: Calibrated
    calibration: Calibration
    fitted_here: bool
    looks: dict[str, Any] | None = None

    @property
    def is_calibrated(self) -> bool:
        return any(decision.calibrated for decision in self.after.decisions)

    def to_dict(self) -> dict[str, Any]:
        """Measures with 95 % intervals before and after, the risk-coverage curve after, what the pictures are worth."""
        found: dict[str, Any] = {"n": len(self.answers), "fitted_here": self.fitted_here}
        for name, of in {"before": self.before, "after": self.after}.items():
            if name == "before" or self.is_calibrated:
                found[name] = {
                    measure: {"value": round(value, 4), "interval": [round(end, 4) for end in ends]}
                    for measure, (value, ends) in of.measures().items()
                }
                found[name][ECE]["by_chance"] = round(of.ece_by_chance(), 4)
        final = self.after if self.is_calibrated else self.before
        found["fitted"] = {
            key: asdict(self.calibration.fitted[key]) for key in by_key(self.answers) if key in self.calibration.fitted
        }
        found["risk_coverage"] = risk_coverage(final)
        found["curve"] = final.curve()
        found["reliability"] = {"before": self.before.reliability(), "after": self.after.reliability()}
        found["confusion"] = self.confusion()
        return found if self.looks is None else found | {"looks": self.looks}

    def confusion(self) -> dict[str, Any] | None:
        """How often each right answer [rows] was decided as which [columns], of the set that was asked most.

        None if that has more than `LARGEST_TABLE` answers.
        """
        (of, _), *_ = Counter(self.answers).most_common(1)
        if len(of.answers) > LARGEST_TABLE:
            return None
        counts = np.zeros((len(of.answers), len(of.answers)), dtype=int)
        for answers, decision, truth in zip(self.answers, self.after.decisions, self.after.truth, strict=True):
            if answers == of:
                counts[of.answers.index(truth), of.answers.index(decision.answer)] += 1
        return {"answers": list(of.answers), "counts": counts.tolist()}


def decide_task(
    assistant: Assistant,
    task: Task,
    *,
    calibrate: bool = False,
    max_error: float | None = None,
    blind: bool = False,
    console: Console,
) -> DecisionResult | None:
    """Has the model decide the questions of a task that have a closed set of answers.

    Args:
        assistant: the model. Of a question it knows, its own answers are taken: the data may lack one.
        task: of a data file.
        calibrate: fit the temperatures on these questions; they must not be of the training.
        max_error: choose thresholds: the share of wrong answers among those that are not refused.
        blind: decide again with other pictures, to see whether it looks.
        console: where progress is shown.

    Returns:
        None if no question has a closed set of answers, or fewer than half have one and nothing is to be fitted.

    Raises:
        InputError: a question cannot be asked, or the thresholds cannot be chosen.
    """
    known = assistant.checkpoint.calibration or Calibration()
    questions: list[Question] = []
    answers: list[AnswerSet] = []
    truth: list[int] = []
    for question in next(iter(task.groups.values())):
        of = known.questions.get(question.text, question.answers)
        if of is not None and (place := of.index(question.expected)) is not None:
            questions.append(question)
            answers.append(of)
            truth.append(place)
    keeps = calibrate or max_error is not None
    if not questions or (not keeps and len(questions) < len(next(iter(task.groups.values()))) / 2):
        return None
    logs = _score(assistant, questions, answers, console)
    right = [of.answers[place] for of, place in zip(answers, truth, strict=True)]
    before = Calibrated([Decision.of(*item) for item in zip(answers, logs, strict=True)], right)
    if calibrate:
        sets = {question.text: of for question, of in zip(questions, answers, strict=True)}
        known = Calibration({**known.fitted, **fit(answers, logs, truth)}, {**known.questions, **sets})
        after = cross_fitted(answers, logs, truth)
    else:
        after = [known.fitted.get(of.key) for of in answers]
    decided = [Decision.of(of, log, None, fitted) for of, log, fitted in zip(answers, logs, after, strict=True)]
    looking = _looks(assistant, questions, before, answers, console) if blind else None
    result = DecisionResult(questions, answers, before, Calibrated(decided, right), known, calibrate, looking)
    return result if max_error is None else replace(result, calibration=_with_thresholds(result, max_error))


def _score(
    assistant: Assistant, questions: Sequence[Question], answers: Sequence[AnswerSet], console: Console, how: str = ""
) -> list[list[float]]:
    """The logarithmic probabilities of the answers, with a progress bar."""
    with progress(console) as bar:
        shown = bar.add_task(f"decisions{how}", total=len(questions))
        return assistant.score_answers(
            [question.messages for question in questions],
            answers,
            where=[question.where for question in questions],
            on_progress=lambda done: bar.update(shown, completed=done),
        )


def _looks(
    assistant: Assistant,
    questions: Sequence[Question],
    decided: Calibrated,
    answers: Sequence[AnswerSet],
    console: Console,
) -> dict[str, Any] | None:
    """What the pictures of decided questions are worth in accuracy; None if there are none."""
    seen = [place for place, question in enumerate(questions) if question.pictures]
    of_seen, truth = [answers[place] for place in seen], [decided.truth[place] for place in seen]
    earned = {}
    for name, others in without_pictures(questions, assistant).items():
        logs = _score(assistant, others, of_seen, console, f", {name} picture")
        blind = Calibrated([Decision.of(*item) for item in zip(of_seen, logs, strict=True)], truth)
        earned[name] = [{"accuracy": float(right)} for right in blind.right]
    scores = [{"accuracy": float(right)} for right in decided.right[seen]]
    return looks(MEASURES["accuracy"], scores, earned, truth) if earned else None


def _with_thresholds(result: DecisionResult, max_error: float) -> Calibration:
    """The calibration with a threshold for each kind of question and number of answers asked."""
    fitted = dict(result.calibration.fitted)
    for key, places in by_key(result.answers).items():
        if key not in fitted or len(places) < LEAST_SAMPLES:
            what = f"{len(places)} samples are too few for a threshold" if key in fitted else "not calibrated yet"
            raise InputError(
                what, where=key, hint=f"Give {LEAST_SAMPLES} or more, and --calibrate if they are held out."
            )
        least = threshold(result.after.probabilities[places], result.after.right[places], max_error)
        # Above every probability where not even the surest answers are right often enough: all are refused.
        fitted[key] = replace(fitted[key], threshold=1.01 if least is None else least, max_error=max_error)
    return replace(result.calibration, fitted=fitted)


def risk_coverage(found: Calibrated) -> list[dict[str, Any]]:
    """The share of questions that can be answered for each of `ERRORS`."""
    rows = []
    for error in ERRORS:
        least = threshold(found.probabilities, found.right, error)
        covered, wrong = (0.0, 0.0) if least is None else found.coverage(least)
        rows.append({"max_error": error, "threshold": least, "coverage": round(covered, 4), "error": round(wrong, 4)})
    return rows
