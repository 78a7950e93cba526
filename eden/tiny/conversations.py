"""Conversations as people hold them: several questions in any order, small talk between them, pictures that come later.

A picture stands before the words, behind them or between two sentences; a question is about the picture shown last.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..messages import Image, MediaSource, Message, Part, Text
from .questions import KINDS, Question, ask
from .smalltalk import DECLINED, NO_PICTURE, SMALL_TALK
from .world import Scene, sample_scene, scenes

Position: TypeAlias = Literal["before", "behind", "between"]
POSITIONS: tuple[Position, ...] = ("before", "behind", "between")
ANYWHERE: tuple[Position, ...] = (*POSITIONS, "before", "behind")
OPENINGS = ("Look at this picture.", "Here is a picture.", "I have a question.", "Look!", "Please answer.", "And this?")
SYSTEM = (
    "You are a helpful assistant.",
    "You are eden-tiny.",
    "Answer the question about the picture.",
    "Be brief.",
    "You are a helpful vision assistant. Answer truthfully.",
)
MOST_TURNS = 4
CONTEXTS = ("after a description", "after a question", "after small talk", "after a second picture")
"""What comes before the question that is judged."""
_SHORT = [kind for kind in KINDS if kind != "description"]


@dataclass(frozen=True)
class Turn:
    """A question and its answer.

    Attributes:
        question: what is asked, and the right answer.
        shows: the number of the picture that comes with it; None shows none.
        position: where the picture stands in the words.
    """

    question: Question
    shows: int | None = None
    position: Position = "before"


def converse(
    shown: Sequence[Scene | None], kinds: Sequence[str], positions: Sequence[Position], rng: random.Random
) -> list[Turn]:
    """One to four random turns about pictures that come one after another.

    Args:
        shown: what each picture shows; None is a picture that is not of the world. None at all is small talk.
        kinds: of questions, in the shares they are asked in.
        positions: of pictures, in the shares they stand there.
        rng: the source of chance.
    """
    turns: list[Turn] = []
    if not shown or rng.random() < 0.15:
        turns.append(Turn(no_picture_yet(rng)))
    for number, scene in enumerate(shown):
        first = Turn(about(scene, kinds, rng), number, rng.choice(positions))
        turns.append(first)
        room = MOST_TURNS - len(turns) - (len(shown) - number - 1)
        for _ in range(rng.randint(0, max(0, room))):
            small = rng.random() < 0.08
            turns.append(Turn(small_talk(rng) if small else about(scene, kinds, rng)))
    return turns


def about(scene: Scene | None, kinds: Sequence[str], rng: random.Random) -> Question:
    """A question about a picture; about one that is not of the world, any question, answered by saying so."""
    asked_of = scene or sample_scene(rng, "train")
    while (question := ask(asked_of, rng.choice(kinds), rng)) is None:
        continue
    return question if scene else Question("declined", question.text, DECLINED)


def small_talk(rng: random.Random) -> Question:
    """Words that need no picture."""
    return Question("small talk", *rng.choice(SMALL_TALK))


def no_picture_yet(rng: random.Random) -> Question:
    """Small talk, or a question about a picture that was not shown."""
    if rng.random() < 0.7:
        return small_talk(rng)
    return Question("no picture", about(sample_scene(rng, "train"), KINDS, rng).text, NO_PICTURE)


def to_messages(
    turns: Sequence[Turn], pictures: Sequence[MediaSource], rng: random.Random, system: str | None = None
) -> tuple[Message, ...]:
    """The turns as the package's conversation type.

    Args:
        turns: of `converse`.
        pictures: those the turns show, by number.
        rng: chooses the words before a picture that stands between two sentences.
        system: the system turn; None is none.
    """
    messages = [] if system is None else [Message.system(system)]
    for turn in turns:
        words = turn.question.text
        if turn.shows is None:
            messages.append(Message.user(words))
        else:
            parts = place(Image(pictures[turn.shows]), words, turn.position, rng)
            messages.append(Message("user", parts))
        messages.append(Message.assistant(turn.question.answer))
    return tuple(messages)


def place(image: Image, words: str, position: Position, rng: random.Random) -> tuple[Part, ...]:
    """An image before, behind or between words."""
    if position == "before":
        return image, Text(words)
    if position == "behind":
        return Text(words + rng.choice(("", "\n"))), image
    return Text(rng.choice(OPENINGS) + rng.choice(("", "\n"))), image, Text(words)


def conversation_set(n: int, *, seed: int) -> list[tuple[str, tuple[Message, ...], Scene, Question]]:
    """`n` conversations about unseen scenes up to a last question, each context with each kind as often as any.

    The turns before hold the right answers.

    Returns:
        For each its context, its messages, the scene that the last question is about, and that question.
    """
    rng = random.Random(f"conversations {seed}")
    drawn = scenes(seed, "test")
    found = []
    for number in range(n):
        context, kind = CONTEXTS[number % len(CONTEXTS)], KINDS[number % len(KINDS)]
        while (question := ask((shown := next(drawn))[0], kind, rng)) is None:
            continue
        seen = [next(drawn), shown] if context == "after a second picture" else [shown]
        turns = _lead_to(question, context, [scene for scene, _ in seen], rng)
        system = rng.choice(SYSTEM) if rng.random() < 0.2 else None
        messages = to_messages(turns, [image for _, image in seen], rng, system)[:-1]
        found.append((context, messages, shown[0], question))
    return found


def _lead_to(question: Question, context: str, seen: Sequence[Scene], rng: random.Random) -> list[Turn]:
    """Turns of which the question is the last."""
    if context == "after a description":
        asked = [about(seen[0], ["description"], rng)]
    elif context == "after a question":
        asked = [about(seen[0], _SHORT, rng) for _ in range(rng.randint(1, MOST_TURNS - 1))]
    elif context == "after a second picture":
        asked = [about(seen[0], KINDS, rng) for _ in range(rng.randint(1, 2))]
    else:
        asked = [small_talk(rng)] if rng.random() < 0.5 else [about(seen[0], _SHORT, rng), small_talk(rng)]
    first = 1 if asked[0].kind == "small talk" else 0
    shows = {first: 0} | ({len(asked): 1} if len(seen) > 1 else {})
    return [Turn(one, shows.get(place), rng.choice(POSITIONS)) for place, one in enumerate((*asked, question))]
