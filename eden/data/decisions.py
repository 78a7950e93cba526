"""Which samples of a data set are decisions: a question with a closed set of answers, and one of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.answers import MOST_ANSWERS, AnswerSet
from .formats import Sample
from .store import KINDS, RecordStore, Samples

LONGEST_ANSWER = 60
"""Characters; longer ones are no class."""
ASKED_OFTEN = 5
"""A question's answers are taken for a closed set where each was given so often, on average."""
LEAST_OF_A_CLASS = 10
"""Samples of an answer, below which a part held out of them is too small to calibrate with."""


@dataclass(frozen=True)
class Asked:
    """A question of a data set and how often each answer was given; `samples` counts them all."""

    question: str
    answers: AnswerSet
    counts: Mapping[str, int]

    @property
    def too_small(self) -> list[str]:
        """Answers given too seldom to calibrate with."""
        return [answer for answer, number in self.counts.items() if number < LEAST_OF_A_CLASS]

    def to_dict(self) -> dict[str, Any]:
        counts = {"question": self.question, "kind": self.answers.kind, "answers": dict(self.counts)}
        return counts | {"too_small": self.too_small}


class Decisions:
    """The closed sets of answers of samples.

    A sample's own `choices` or `levels` come first, then what is known of its question, then yes and no; else the
    answers that its question has in the data, if they are short and each was given often.

    Args:
        samples: all there are of a data set, training and held-out ones; only those with one short answer count.
        known: sets by question.
    """

    def __init__(self, samples: Samples, known: Mapping[str, AnswerSet] | None = None):
        self._counts: dict[str, Counter[str]] = defaultdict(Counter)
        self._named: dict[str, AnswerSet] = {}
        for sample in _short(samples):
            question, answer = sample.messages[-2].text, sample.messages[-1].text.strip()
            self._counts[question][answer] += 1
            if sample.answers is not None:
                self._named.setdefault(question, sample.answers)
        inferred = {question: _inferred(counts) for question, counts in self._counts.items()}
        self.sets = {question: found for question, found in inferred.items() if found is not None}
        self.sets |= self._named | {text: found for text, found in (known or {}).items() if text in self._counts}

    def of(self, sample: Sample) -> AnswerSet | None:
        """The answers a sample's question has, its own among them; None if it is no decision."""
        found = sample.answers or self.sets.get(sample.messages[-2].text)
        return found if found is not None and found.index(sample.messages[-1].text) is not None else None

    def asked(self) -> list[Asked]:
        """The questions that are decisions, the most frequent first; yes and no as one, whatever is asked."""
        found: dict[tuple[str, AnswerSet], Counter[str]] = defaultdict(Counter)
        for question, answers in self.sets.items():
            shown = "(yes or no)" if answers.kind == "predicate" else question
            counts = found[shown, answers]
            counts.update(dict.fromkeys(answers.answers, 0))
            for text, number in self._counts[question].items():
                if (place := answers.index(text)) is not None:
                    counts[answers.answers[place]] += number
        rows = [Asked(*of, dict(counts)) for of, counts in found.items()]
        return sorted(rows, key=lambda row: -sum(row.counts.values()))


def _short(samples: Samples) -> Samples:
    """Those with one short answer, known without reading the others."""
    short = np.zeros(len(samples), dtype=bool)
    for source, store in enumerate(samples.stores):
        assert isinstance(store, RecordStore)
        of_store = samples.source == source
        short[of_store] = store.numbers("kind")[samples.row[of_store]] == KINDS.index("short answer")
    return samples.take(np.flatnonzero(short))


def _inferred(counts: Counter[str]) -> AnswerSet | None:
    yes_or_no = AnswerSet.of()
    if all(yes_or_no.index(text) is not None for text in counts):
        return yes_or_no
    if not 2 <= len(counts) <= MOST_ANSWERS or counts.total() < ASKED_OFTEN * len(counts):
        return None
    if any(len(text) > LONGEST_ANSWER or "\n" in text for text in counts):
        return None
    return AnswerSet.of(choices=sorted(counts))
