"""What eden-tiny's Whisper learns to hear: questions and short statements about the world, and loose words."""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterator

from eden.tiny.conversations import about
from eden.tiny.questions import KINDS, NUMBERS, PLURALS, at_place, with_article
from eden.tiny.smalltalk import SMALL_TALK
from eden.tiny.world import COLOURS, HELD_OUT_PAIRS, PLACES, SHAPES, SIZES, sample_scene

THINGS = ("object", "shape", "thing")
PLACE_NAMES = tuple(place for row in PLACES for place in row)

# {n} one thing, {a} with its article, {p} several, {at} a place, {number} a number word, {picture} what is shown
QUESTIONS = (
    "What colour is the {n}?", "Which colour does the {n} have?", "What is the colour of the {n}?",
    "The {n} is of which colour?", "What shape is the {n}?", "Which shape is {c}?", "What is the shape of the {n}?",
    "What is the {n}?", "What {c} shape is {at}?", "How many {p} are there?", "How many {p} do you see?",
    "Count the {p}.", "How many {p} are in the {picture}?", "What is the number of {p}?", "Is there {a}?",
    "Is there {a} in the {picture}?", "Do you see {a}?", "Can you see {a}?", "Does the {picture} show {a}?",
    "Where is the {n}?", "Where is the {n} in the {picture}?", "In which part of the {picture} is the {n}?",
    "What is the position of the {n}?", "Where do you see the {n}?", "Is the {n} small or large?",
    "How big is the {n}?", "What size is the {n}?", "What is the size of the {n}?", "Is the {n} large or small?",
    "Is the {n} left of the {n2}?", "Is the {n} to the left of the {n2}?", "Is the {n} above the {n2}?",
    "Is the {n} higher than the {n2}?", "Are there more {p} than {p2}?", "Do you see more {p} than {p2}?",
    "Is the {n} larger than the {n2}?", "Is the {n} bigger than the {n2}?", "Describe the {n}.",
    "Describe the {n} in the {picture}.", "What do you see {at}?", "What is {at} in the {picture}?",
    "What does this {picture} show {at}?", "Please describe this {picture}.", "Describe what you see {at}.",
)  # fmt: skip
STATEMENTS = (
    "{A} {at}.", "The {n} is {at}.", "The {n} is {c}.", "There are {number} {p}.", "I see {a} and {a2}.",
    "This {picture} shows {a}.", "The {n} is above the {n2}.", "The {n} is left of the {n2}.",
)  # fmt: skip
OTHERS = (
    "What digit is this?", "Which digit is this?", "What number is this?", "Which number do you see?", "Yes.", "No.",
    "What is this?", "What do you see here?", "Tell me what you see.", "What colour is it?",
)  # fmt: skip
PARTS = 1, 2, 3, 4, 5, 6
"""Loose words said in a row."""


def sentences(rng: random.Random, held_out: Collection[str]) -> Iterator[str]:
    """Endless sentences, none of them in `held_out` (compared by `plain_words`), none naming a held-out pair."""
    words = sorted({word for _ in range(3000) for word in plain_words(_any(rng, loose=[])).split()})
    while True:
        sentence = _any(rng, words)
        if plain_words(sentence) not in held_out and not _HELD_OUT.search(sentence.lower()):
            yield sentence


def plain_words(sentence: str) -> str:
    """A sentence as it sounds: lower case, no punctuation, one spelling of `colour`."""
    return " ".join(re.findall(r"[a-z0-9]+", sentence.lower().replace("color", "colour")))


def as_heard(sentence: str) -> str:
    """How a transcript writes a sentence: a capital first, a sign at the end, one spelling of `colour`."""
    text = sentence.replace("color", "colour")
    if text[-1] not in ".?!":
        text += "?"
    return text[0].upper() + text[1:]


_HELD_OUT = re.compile("|".join(f"{colour} {shape}" for colour, shape in sorted(HELD_OUT_PAIRS)))


def _any(rng: random.Random, loose: list[str]) -> str:
    """One sentence of any kind; loose words only where some are given."""
    draw = rng.random()
    if draw < 0.4:
        return about(sample_scene(rng, "train"), KINDS, rng).text
    if draw < 0.7:
        return _fill(rng.choice(QUESTIONS), rng)
    if draw < 0.8:
        return _fill(rng.choice(STATEMENTS), rng)
    if draw < 0.85:
        return rng.choice((*OTHERS, *(text for pair in SMALL_TALK for text in pair)))
    if not loose:
        return _fill(rng.choice(QUESTIONS), rng)
    return " ".join(rng.choice(loose) for _ in range(rng.choice(PARTS))).capitalize() + "."


def _fill(template: str, rng: random.Random) -> str:
    one, other = _noun(rng, plural=False), _noun(rng, plural=False)
    where = rng.choice(PLACE_NAMES)
    return template.format(
        n=one,
        n2=other,
        a=with_article(one),
        a2=with_article(other),
        A=with_article(one).capitalize(),
        p=_noun(rng, plural=True),
        p2=_noun(rng, plural=True),
        c=rng.choice(list(COLOURS)),
        at=at_place(where),
        number=rng.choice(NUMBERS),
        picture=rng.choice(("picture", "image")),
    )


def _noun(rng: random.Random, plural: bool) -> str:
    name = rng.choice((*SHAPES, *THINGS))
    if plural:
        name = PLURALS.get(name, f"{name}s")
    words = [rng.choice(list(SIZES))] * (rng.random() < 0.35) + [rng.choice(list(COLOURS))] * (rng.random() < 0.6)
    return " ".join([*words, name])
