"""What can be asked about a scene, in natural words, and what counts as a right answer."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .world import COLOURS, HELD_OUT_PAIRS, SHAPES, SIZES, Object, Scene

NUMBERS = ("zero", "one", "two", "three", "four")
_DIGITS = {str(number): word for number, word in enumerate(NUMBERS)}
PLURALS = {shape: shape + ("es" if shape == "cross" else "s") for shape in SHAPES}


@dataclass(frozen=True)
class Question:
    """A question about a scene and its answer.

    Attributes:
        kind: one of `KINDS`.
        text: the question.
        answer: a right answer, in the words eden-tiny is taught.
    """

    kind: str
    text: str
    answer: str


def ask(scene: Scene, kind: str, rng: random.Random, about: Object | None = None) -> Question | None:
    """A random question of a kind, or None if this scene leaves nothing of that kind to ask without ambiguity.

    Args:
        scene: what the picture shows.
        kind: one of `KINDS`.
        rng: the source of chance.
        about: the question must be about this object; None asks about any.
    """
    made = _MAKERS[kind](scene, rng, about)
    if made is None:
        return None
    templates, words, answer = made
    return Question(kind, _wording(rng.choice(templates).format(**words), rng), answer)


def is_correct(question: Question, scene: Scene, answer: str) -> bool:
    """True if the answer says what is so.

    A short answer counts when it is the expected one, whatever its case, articles and punctuation, a number in
    digits or in words. A description counts when it names exactly the objects that are there, each with its size,
    colour and shape.
    """
    if question.kind == "description":
        return _named(answer) == Counter((thing.size, *thing.pair) for thing in scene.objects)
    return _plain(answer) == _plain(question.answer)


_Made = tuple[Sequence[str], dict[str, str], str] | None


def _colour(scene: Scene, rng: random.Random, about: Object | None) -> _Made:
    thing = _pick(scene, rng, about, lambda one: _alone(scene, shape=one.shape))
    if thing is None:
        return None
    templates = (
        "What colour is the {shape}?",
        "What color is the {shape}?",
        "Which colour does the {shape} have?",
        "What is the colour of the {shape}?",
        "The {shape} is of which color?",
    )
    return templates, {"shape": thing.shape}, _sentence(thing.colour)


def _shape(scene: Scene, rng: random.Random, about: Object | None) -> _Made:
    thing = _pick(scene, rng, about, lambda one: _alone(scene, colour=one.colour))
    if thing is None:
        return None
    templates = (
        "What shape is the {colour} object?",
        "Which shape is {colour}?",
        "What is the shape of the {colour} object?",
        "What is the {colour} thing?",
        "What {colour} shape is there?",
    )
    return templates, {"colour": thing.colour}, _sentence(thing.shape)


def _count(scene: Scene, rng: random.Random, about: Object | None) -> _Made:
    templates: Sequence[str] = ("How many {what} are there?", "How many {what} do you see?", "Count the {what}.")
    choices = ["all", "shape", "colour"] if about is None else ["pair", "shape", "colour"]
    choice = rng.choice(choices)
    if choice == "all":
        templates = (*templates, "How many {what} are in the picture?", "What is the number of {what}?")
        return templates, {"what": rng.choice(("objects", "shapes", "things"))}, _number(len(scene.objects))
    if choice == "pair" and about is not None:
        number = sum(thing.pair == about.pair for thing in scene.objects)
        return templates, {"what": f"{about.colour} {PLURALS[about.shape]}"}, _number(number)
    if choice == "shape":
        shape = about.shape if about else rng.choice((*SHAPES, rng.choice(scene.objects).shape))
        return templates, {"what": PLURALS[shape]}, _number(sum(t.shape == shape for t in scene.objects))
    colour = about.colour if about else rng.choice((*COLOURS, rng.choice(scene.objects).colour))
    number = sum(thing.colour == colour for thing in scene.objects)
    return templates, {"what": f"{colour} {rng.choice(('objects', 'shapes', 'things'))}"}, _number(number)


def _existence(scene: Scene, rng: random.Random, about: Object | None) -> _Made:
    templates = (
        "Is there {what}?",
        "Is there {what} in the picture?",
        "Do you see {what}?",
        "Can you see {what}?",
        "Does the picture show {what}?",
    )
    present = {thing.pair for thing in scene.objects}
    if rng.random() < 0.5:
        colour, shape = about.pair if about else rng.choice(sorted(present))
        return templates, {"what": with_article(f"{colour} {shape}")}, "Yes."
    # The hard absences: a colour and a shape that are both there, but not in one object.
    colours = [about.colour] if about else [thing.colour for thing in scene.objects]
    absent = [(colour, shape) for colour in colours for shape in SHAPES]
    absent += [(colour, thing.shape) for thing in scene.objects for colour in COLOURS if about is None]
    absent = [pair for pair in absent if pair not in present and pair not in HELD_OUT_PAIRS]
    if not absent:
        return None
    colour, shape = rng.choice(absent)
    return templates, {"what": with_article(f"{colour} {shape}")}, "No."


def _place(scene: Scene, rng: random.Random, about: Object | None) -> _Made:
    thing = _pick(scene, rng, about, lambda one: _name(scene, one, rng) is not None)
    if thing is None:
        return None
    templates = (
        "Where is the {what}?",
        "Where is the {what} in the picture?",
        "In which part of the picture is the {what}?",
        "What is the position of the {what}?",
        "Where do you see the {what}?",
    )
    return templates, {"what": _certain_name(scene, thing, rng)}, _sentence(thing.place)


def _size(scene: Scene, rng: random.Random, about: Object | None) -> _Made:
    thing = _pick(scene, rng, about, lambda one: _name(scene, one, rng) is not None)
    if thing is None:
        return None
    templates = (
        "Is the {what} small or large?",
        "How big is the {what}?",
        "What size is the {what}?",
        "What is the size of the {what}?",
        "Is the {what} large or small?",
    )
    return templates, {"what": _certain_name(scene, thing, rng)}, _sentence(thing.size)


def _relation(scene: Scene, rng: random.Random, about: Object | None) -> _Made:
    two = _pick_two(scene, rng, about)
    if two is None:
        return None
    first, second = two
    if rng.random() < 0.5:
        templates = ("Is the {a} left of the {b}?", "Is the {a} to the left of the {b}?")
        holds = first.column < second.column
    else:
        templates = ("Is the {a} above the {b}?", "Is the {a} higher than the {b}?")
        holds = first.row < second.row
    words = {"a": _certain_name(scene, first, rng), "b": _certain_name(scene, second, rng)}
    return templates, words, "Yes." if holds else "No."


def _comparison(scene: Scene, rng: random.Random, about: Object | None) -> _Made:
    if about is None and rng.random() < 0.5:
        first, second = rng.sample([*PLURALS], 2) if rng.random() < 0.5 else rng.sample([*COLOURS], 2)
        counts = Counter(thing.shape for thing in scene.objects) + Counter(thing.colour for thing in scene.objects)
        names = [PLURALS.get(word, f"{word} objects") for word in (first, second)]
        templates: Sequence[str] = ("Are there more {a} than {b}?", "Do you see more {a} than {b}?")
        return templates, dict(zip("ab", names, strict=True)), "Yes." if counts[first] > counts[second] else "No."
    two = _pick_two(scene, rng, about)
    if two is None:
        return None
    templates = ("Is the {a} larger than the {b}?", "Is the {a} bigger than the {b}?")
    words = {"a": _certain_name(scene, two[0], rng), "b": _certain_name(scene, two[1], rng)}
    larger = SIZES[two[0].size] > SIZES[two[1].size]
    return templates, words, "Yes." if larger else "No."


def _description(scene: Scene, rng: random.Random, about: Object | None) -> _Made:
    templates = (
        "Describe the picture.",
        "Describe the image.",
        "What do you see?",
        "What is in the picture?",
        "What does this picture show?",
    )
    return templates, {}, describe(scene)


_MAKERS: dict[str, Callable[[Scene, random.Random, Object | None], _Made]] = {
    "colour": _colour,
    "shape": _shape,
    "count": _count,
    "existence": _existence,
    "place": _place,
    "size": _size,
    "relation": _relation,
    "comparison": _comparison,
    "description": _description,
}
KINDS = tuple(_MAKERS)


def describe(scene: Scene) -> str:
    """Every object with size, colour, shape and place, in reading order."""
    parts = [
        f"{with_article(f'{thing.size} {thing.colour} {thing.shape}')} {at_place(thing.place)}"
        for thing in scene.objects
    ]
    text = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    return text[0].upper() + text[1:] + "."


def at_place(place: str) -> str:
    """`at the top left`, `in the center`."""
    return f"{'in' if place == 'center' else 'at'} the {place}"


def _pick(scene: Scene, rng: random.Random, about: Object | None, fits: Callable[[Object], bool]) -> Object | None:
    candidates = [thing for thing in ([about] if about else scene.objects) if fits(thing)]
    return rng.choice(candidates) if candidates else None


def _pick_two(scene: Scene, rng: random.Random, about: Object | None) -> tuple[Object, Object] | None:
    """Two objects that can both be named, `about` among them if given, in random order."""
    named = [thing for thing in scene.objects if _name(scene, thing, rng) is not None]
    if len(named) < 2 or (about is not None and about not in named):
        return None
    if about is None:
        first, second = rng.sample(named, 2)
    else:
        first, second = about, rng.choice([thing for thing in named if thing != about])
        if rng.random() < 0.5:
            first, second = second, first
    return first, second


def _alone(scene: Scene, *, shape: str | None = None, colour: str | None = None) -> bool:
    """True if exactly one object fits."""
    return sum(shape in (None, t.shape) and colour in (None, t.colour) for t in scene.objects) == 1


def _name(scene: Scene, thing: Object, rng: random.Random) -> str | None:
    """Words that mean this object and no other, or None if there are none."""
    names = []
    if _alone(scene, shape=thing.shape):
        names.append(thing.shape)
    if _alone(scene, colour=thing.colour):
        names.append(f"{thing.colour} {rng.choice(('object', 'shape', 'thing'))}")
    if _alone(scene, shape=thing.shape, colour=thing.colour):
        names += [f"{thing.colour} {thing.shape}"] * 2
    return rng.choice(names) if names else None


def _certain_name(scene: Scene, thing: Object, rng: random.Random) -> str:
    name = _name(scene, thing, rng)
    assert name is not None, "the caller picked an object that can be named"
    return name


def _wording(text: str, rng: random.Random) -> str:
    """What people do to a question: no capital, no question mark."""
    if rng.random() < 0.15:
        text = text[0].lower() + text[1:]
    if rng.random() < 0.15:
        text = text.rstrip("?.")
    return text


def with_article(words: str) -> str:
    """`a star`, `an orange star`."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _sentence(words: str) -> str:
    return f"{words.capitalize()}."


def _number(number: int) -> str:
    return _sentence(NUMBERS[number])


def _plain(text: str) -> str:
    words = re.findall(r"[a-z0-9]+", text.lower())
    return " ".join(_DIGITS.get(word, word) for word in words if word not in ("a", "an", "the"))


_OBJECT = re.compile(rf"\b({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b")


def _named(description: str) -> Counter[tuple[str, ...]]:
    """The objects a description names; a colour or a shape outside such a name makes it match nothing."""
    text = description.lower()
    rest = _OBJECT.sub("", text)
    if re.search(rf"\b({'|'.join((*COLOURS, *SHAPES))})", rest):
        return Counter({("unclear",): 1})
    return Counter(_OBJECT.findall(text))
