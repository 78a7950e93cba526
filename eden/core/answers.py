"""Closed sets of answers, which a decision is made between, and when an answer is the expected one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from ..errors import InputError

Kind: TypeAlias = Literal["predicate", "choice", "score"]
"""Yes or no, one of several, or one of several in order."""
MOST_ANSWERS = 255
YES, NO = "yes", "no"
_SPELLINGS = {word: (word, word.capitalize(), f"{word}.", f"{word.capitalize()}.") for word in (YES, NO)}


@dataclass(frozen=True)
class AnswerSet:
    """The answers that a question may have.

    Attributes:
        kind: of the question.
        answers: 2 to 255 different ones; of a score from the lowest level to the highest.

    Raises:
        InputError: they are too few, too many, empty or not all different.
    """

    kind: Kind
    answers: tuple[str, ...]

    def __post_init__(self) -> None:
        noun = "levels" if self.kind == "score" else "choices"
        if self.kind not in get_args(Kind) or (self.kind == "predicate" and self.answers != (YES, NO)):
            raise InputError(f"no such kind of question: {self.kind!r}", hint=f"Use {', '.join(get_args(Kind))}.")
        if not 2 <= len(self.answers) <= MOST_ANSWERS:
            raise InputError(f"{len(self.answers)} {noun}", hint=f"Give 2 to {MOST_ANSWERS} of them.")
        stripped = [answer.strip() for answer in self.answers]
        if not all(stripped):
            raise InputError(f"one of the {noun} is empty", hint="Fill it or leave it out.")
        if twice := [answer for answer in stripped if stripped.count(answer) > 1]:
            raise InputError(f"{twice[0]!r} stands twice among the {noun}", hint="Name it once.")
        object.__setattr__(self, "answers", tuple(stripped))

    @classmethod
    def of(cls, choices: Sequence[str] | None = None, levels: Sequence[str] | None = None) -> AnswerSet:
        """Of choices, of levels in order, or, without either, of yes and no.

        Raises:
            InputError: both are given, or they are no set of answers.
        """
        if choices is not None and levels is not None:
            raise InputError("both choices and levels are given", hint="Give one of them.")
        if isinstance(choices, str) or isinstance(levels, str):
            raise InputError("the answers are one string", hint="Give a list of strings.")
        if levels is not None:
            return cls("score", tuple(levels))
        return cls("predicate", (YES, NO)) if choices is None else cls("choice", tuple(choices))

    @property
    def key(self) -> str:
        """What temperatures are kept by: the kind of question and the number of its answers."""
        return f"{self.kind} {len(self.answers)}"

    def to_record(self) -> dict[str, list[str]]:
        """As a record of a data set names them: `choices` or `levels`; yes and no need no naming."""
        key = {"choice": "choices", "score": "levels"}.get(self.kind)
        return {} if key is None else {key: list(self.answers)}

    def spellings(self, answer: str) -> tuple[str, ...]:
        """The texts that mean an answer; yes and no are written large or small, with or without a period."""
        return _SPELLINGS[answer] if self.kind == "predicate" else (answer,)

    @property
    def all_spellings(self) -> list[str]:
        """Of all answers, in order."""
        return [text for answer in self.answers for text in self.spellings(answer)]

    def joined(self, logs: Sequence[float]) -> list[float]:
        """From the logarithmic probabilities of all spellings to those of the answers."""
        found, rest = [], list(logs)
        for answer in self.answers:
            number = len(self.spellings(answer))
            some, rest = rest[:number], rest[number:]
            highest = max(some)
            found.append(highest + math.log(sum(math.exp(log - highest) for log in some)))
        return found

    def index(self, text: str) -> int | None:
        """Which answer a text is, or None."""
        text = text.strip()
        return next((place for place, answer in enumerate(self.answers) if text in self.spellings(answer)), None)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "answers": list(self.answers)}


def in_words(key: str) -> str:
    """What an `AnswerSet.key` stands for."""
    kind, _, size = key.partition(" ")
    return "yes or no" if kind == "predicate" else f"{size} {'levels' if kind == 'score' else 'choices'}"


def exact_match(expected: str, answer: str) -> bool:
    """Equal but for case, outer punctuation and spacing."""
    return _bare(expected) == _bare(answer)


def _bare(text: str) -> str:
    return " ".join(text.split()).strip(" .!?\"'").casefold()
