"""The world eden-tiny learns: the same every time, its splits apart, its answers true."""

import itertools
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from eden.data.validate import load_samples
from eden.messages import Image, Message, Text
from eden.tiny import foreign
from eden.tiny.conversations import ANYWHERE, CONTEXTS, MOST_TURNS, POSITIONS, about, conversation_set, converse, place
from eden.tiny.dataset import evaluation_set
from eden.tiny.questions import KINDS, NUMBERS, PLURALS, Question, ask, describe, is_correct
from eden.tiny.smalltalk import DECLINED, NO_PICTURE, SMALL_TALK
from eden.tiny.world import (
    CELL,
    COLOURS,
    HELD_OUT_PAIRS,
    IMAGE_SIZE,
    SHAPES,
    SIZES,
    Object,
    Scene,
    Split,
    render,
    sample_scene,
    scenes,
)
from tiny_build.build import JUDGED_ON, installed_photographs
from tiny_build.dataset import write_dataset

SPLITS: tuple[Split, ...] = ("train", "test", "unseen_pairs")
HELD_OUT_NAMES = [f"{colour} {shape}" for colour, shape in HELD_OUT_PAIRS]
SINGULARS = {plural: shape for shape, plural in PLURALS.items()}

RED_CIRCLE = Object(0, 0, "red", "circle", "small")
BLUE_STAR = Object(1, 2, "blue", "star", "large")
SCENE = Scene((RED_CIRCLE, BLUE_STAR))


def many(split: Split, number: int = 300) -> list[Scene]:
    rng = random.Random(f"test {split}")
    return [sample_scene(rng, split) for _ in range(number)]


def fitting(scene: Scene, words: str) -> list[Object]:
    """The objects that `red circle`, `circles` or `red things` mean, found by the words alone."""
    found = list(scene.objects)
    for word in words.split():
        word = SINGULARS.get(word, word)
        if word in COLOURS:
            found = [thing for thing in found if thing.colour == word]
        elif word in SHAPES:
            found = [thing for thing in found if thing.shape == word]
        else:
            assert re.fullmatch("(object|shape|thing)s?", word), word
    return found


def words_in(text: str) -> list[str]:
    """The names a question mentions, in order: colour and shape, one of the two, or the general word."""
    names = "|".join((*PLURALS.values(), *SHAPES))
    colours = "|".join(COLOURS)
    pattern = rf"\b((?:{colours}) (?:{names}|objects?|shapes?|things?)|(?:{names})|(?:{colours}))\b"
    return re.findall(pattern, text)


def true_answer(scene: Scene, question: Question) -> str:
    """The answer worked out a second time, from the question's words and nothing else."""
    text = question.text.lower()
    names = words_in(text)
    if question.kind == "description":
        parts = [f"{thing.size} {thing.colour} {thing.shape}" for thing in scene.objects]
        assert all(part in question.answer.lower() for part in parts)
        return question.answer
    if question.kind == "count":
        return NUMBERS[len(fitting(scene, names[0]) if names else scene.objects)].capitalize() + "."
    if question.kind == "existence":
        return "Yes." if fitting(scene, names[0]) else "No."
    if question.kind == "comparison" and "more" in text:
        first, second = (len(fitting(scene, name)) for name in names)
        return "Yes." if first > second else "No."
    meant = [fitting(scene, name) for name in names]
    assert all(len(things) == 1 for things in meant), f"{question.text} is ambiguous"
    things = [only for (only,) in meant]
    if question.kind in ("colour", "shape", "size"):
        (thing,) = things
        return getattr(thing, question.kind).capitalize() + "."
    if question.kind == "place":
        (thing,) = things
        return thing.place.capitalize() + "."
    first_thing, second_thing = things
    if question.kind == "comparison":
        return "Yes." if first_thing.size == "large" and second_thing.size == "small" else "No."
    if "left" in text:
        return "Yes." if first_thing.column < second_thing.column else "No."
    return "Yes." if first_thing.row < second_thing.row else "No."


@pytest.mark.parametrize("split", SPLITS)
def test_answers_are_true(split: Split) -> None:
    rng = random.Random(0)
    seen = Counter[str]()
    for scene in many(split):
        for kind in KINDS:
            if (question := ask(scene, kind, rng)) is not None:
                assert question.kind == kind
                assert question.answer == true_answer(scene, question), question
                assert is_correct(question, scene, question.answer)
                seen[kind] += 1
    assert min(seen[kind] for kind in KINDS) > 100


def test_the_same_seed_gives_the_same_world_in_another_process() -> None:
    code = (
        "import hashlib\nfrom eden.tiny.dataset import evaluation_set\n"
        "items = evaluation_set(30, seed=7, split='test')\n"
        "print(hashlib.sha256(b''.join(repr((s, q)).encode() + i.tobytes() for s, i, q in items)).hexdigest())"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
    assert evaluation_set(5, seed=7, split="test")[0][2] != evaluation_set(5, seed=8, split="test")[0][2]


def test_the_splits_share_no_scene() -> None:
    found = {split: set(many(split, 1000)) for split in SPLITS}
    assert not found["train"] & found["test"]
    for split in SPLITS:
        assert all(scene.split == split for scene in found[split])


def test_a_pair_held_out_is_never_drawn_or_named_in_training() -> None:
    rng = random.Random(0)
    for split in ("train", "test"):
        for scene in many(split):
            assert not {thing.pair for thing in scene.objects} & HELD_OUT_PAIRS
            for _ in range(10):
                question = about(scene, KINDS, rng)
                assert not any(name in f"{question.text} {question.answer}".lower() for name in HELD_OUT_NAMES)


def test_every_colour_and_shape_is_seen_in_training() -> None:
    seen = {thing.pair for scene in many("train", 1000) for thing in scene.objects}
    assert seen == {(colour, shape) for colour in COLOURS for shape in SHAPES} - HELD_OUT_PAIRS


def test_questions_of_unseen_pairs_are_about_them() -> None:
    for scene, _, question in evaluation_set(90, seed=0, split="unseen_pairs"):
        held_out = [thing for thing in scene.objects if thing.pair in HELD_OUT_PAIRS]
        assert held_out
        if question.kind != "description":
            words = question.text.lower()
            assert any(thing.colour in words or thing.shape in words for thing in held_out), question


@pytest.mark.parametrize("split", SPLITS)
def test_kinds_come_in_equal_numbers(split: Split) -> None:
    counts = Counter(question.kind for _, _, question in evaluation_set(90, seed=1, split=split))
    assert counts == dict.fromkeys(KINDS, 10)


def test_a_picture_shows_its_scene() -> None:
    """The object's colour is in the middle of its cell, and the paper's in the middle of empty ones."""
    for scene, picture in (item for item, _ in zip(scenes(0, "train"), range(100), strict=False)):
        assert picture.size == (IMAGE_SIZE, IMAGE_SIZE)
        assert picture.mode == "RGB"
        pixels = np.asarray(picture, dtype=int)
        things = {(thing.row, thing.column): thing for thing in scene.objects}
        for row in range(3):
            for column in range(3):
                y, x = row * CELL + CELL // 2, column * CELL + CELL // 2
                middle = pixels[y - 2 : y + 3, x - 2 : x + 3].reshape(-1, 3)
                grey = np.ptp(middle, axis=1) < 40  # papers are nearly grey, no shape is
                if thing := things.get((row, column)):
                    distances = np.abs(middle - COLOURS[thing.colour]).max(axis=1)
                    assert distances.min() < 40, thing
                else:
                    assert grey.all()


def test_pictures_of_one_scene_differ() -> None:
    rng = random.Random(0)
    assert render(SCENE, rng).tobytes() != render(SCENE, rng).tobytes()


def test_larger_is_larger() -> None:
    """Whatever chance does, no small object of a shape covers more than a large one."""
    rng = random.Random(0)
    for shape in SHAPES:
        covered: dict[str, list[int]] = {size: [] for size in SIZES}
        for size in SIZES:
            for _ in range(20):
                pixels = np.asarray(render(Scene((Object(1, 1, "red", shape, size),)), rng), dtype=int)
                covered[size].append(int((np.ptp(pixels, axis=2) > 60).sum()))
        assert max(covered["small"]) < min(covered["large"])


def test_description() -> None:
    assert describe(SCENE) == "A small red circle at the top left and a large blue star at the middle right."
    centre = Scene((Object(1, 1, "orange", "cross", "large"),))
    assert describe(centre) == "A large orange cross in the center."


@pytest.mark.parametrize(
    ("expected", "answer", "right"),
    [
        ("Red.", "red", True),
        ("Red.", " RED! ", True),
        ("Red.", "The red.", True),
        ("Red.", "Red or blue.", False),
        ("Red.", "", False),
        ("Three.", "3", True),
        ("Three.", "3.", True),
        ("Three.", "Four.", False),
        ("Three.", "12", False),  # digits of more than one figure are words like any other
        ("Three.", "34", False),
        ("Zero.", "0", True),
        ("Yes.", "yes", True),
        ("Yes.", "Yes. No.", False),
        ("Top left.", "top left", True),
        ("Top left.", "Left.", False),
    ],
)
def test_short_answers(expected: str, answer: str, right: bool) -> None:
    assert is_correct(Question("colour", "?", expected), SCENE, answer) is right


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("A large blue star and a small red circle.", True),  # any order, places left out
        ("a small red circle, a large blue star", True),
        ("A small red circle.", False),  # one missing
        ("A small red circle, a small red circle and a large blue star.", False),  # one too many
        ("A small red circle, a large blue star and a green thing.", False),
        ("A large red circle and a large blue star.", False),  # wrong size
        ("A small red star and a large blue circle.", False),  # shapes exchanged
        ("", False),
    ],
)
def test_descriptions(answer: str, right: bool) -> None:
    assert is_correct(Question("description", "?", describe(SCENE)), SCENE, answer) is right


@pytest.mark.parametrize("split", SPLITS)
def test_a_written_data_set_is_read_back(tmp_path: Path, split: Split) -> None:
    path = write_dataset(tmp_path, 12, seed=3, split=split)
    assert path.name == f"{split}.json"
    samples, report = load_samples(path, None)
    assert report.ok
    assert len(samples) == 12
    for sample, (_, picture) in zip(samples, scenes(3, split), strict=False):
        assert [message.role for message in sample.messages] == ["user", "assistant"] * 2
        (image,) = sample.messages[0].images
        assert isinstance(image.source, str | Path)
        assert np.array_equal(np.asarray(PIL.Image.open(image.source)), np.asarray(picture))
    before = path.read_bytes()
    assert write_dataset(tmp_path / "again", 12, seed=3, split=split).read_bytes() == before


def pictures_of(messages: Sequence[Message]) -> list[Any]:
    return [image.source for message in messages for image in message.images]


def test_the_turns_of_a_conversation_are_true_few_and_about_the_picture_shown_last() -> None:
    rng = random.Random(5)
    counts, positions, kinds = Counter[int](), Counter[str](), Counter[str]()
    for _ in range(400):
        shown = [rng.choice([*many("train", 40), None]) for _ in range(rng.randint(0, 2))]
        turns = converse(shown, KINDS, ANYWHERE, rng)
        counts[len(turns)] += 1
        assert [turn.shows for turn in turns if turn.shows is not None] == list(range(len(shown)))
        last: int | None = None
        for turn in turns:
            last = last if turn.shows is None else turn.shows
            positions[turn.position] += turn.shows is not None
            question = turn.question
            kinds[question.kind] += 1
            if question.kind == "small talk":
                assert (question.text, question.answer) in SMALL_TALK
            elif question.kind == "no picture":
                assert last is None and question.answer == NO_PICTURE
            elif question.kind == "declined":
                assert last is not None and shown[last] is None and question.answer == DECLINED
            else:
                assert last is not None and (scene := shown[last]) is not None
                assert question.answer == true_answer(scene, question)
            assert not any(name in f"{question.text} {question.answer}".lower() for name in HELD_OUT_NAMES)
    assert set(counts) == set(range(1, MOST_TURNS + 1))
    assert min(positions[position] for position in POSITIONS) > 50
    assert set(kinds) == {*KINDS, "small talk", "no picture", "declined"}


def test_a_picture_stands_where_the_turn_puts_it() -> None:
    rng = random.Random(1)
    image = Image(render(SCENE, rng))
    for position, where in (("before", [0]), ("behind", [1]), ("between", [1])):
        parts = place(image, "Which?", position, rng)
        assert [index for index, part in enumerate(parts) if part is image] == where
        assert len(parts) == (3 if position == "between" else 2)
        assert any(isinstance(part, Text) and "Which?" in part.text for part in parts)


def test_what_is_judged_in_conversation_is_true_and_every_context_meets_every_kind() -> None:
    judged = conversation_set(72, seed=4)
    met = Counter((context, question.kind) for context, *_, question in judged)
    assert met == dict.fromkeys(itertools.product(CONTEXTS, KINDS), 2)
    for context, messages, scene, question in judged:
        assert scene.split == "test" and question.answer == true_answer(scene, question)
        said = [message for message in messages if message.role != "system"]
        assert [message.role for message in said] == [("user", "assistant")[i % 2] for i in range(len(said))]
        assert question.text in said[-1].text and len(said) <= 2 * MOST_TURNS - 1
        assert len(pictures_of(messages)) == (2 if context == "after a second picture" else 1)
        assert (context == "after a second picture") <= bool(said[-1].images)
        if context == "after a description":
            assert said[1].text == describe(scene)
        if context == "after small talk":
            assert (said[-3].text, said[-2].text) in SMALL_TALK
    again = conversation_set(9, seed=4)
    assert [one[1:] for one in map(told, again)] == [one[1:] for one in map(told, judged[:9])]


def told(judged: tuple[str, Sequence[Message], Scene, Question]) -> tuple[Any, ...]:
    context, messages, scene, question = judged
    pixels = [picture.tobytes() for picture in pictures_of(messages)]
    return context, [message.text for message in messages], pixels, scene, question


@pytest.mark.parametrize("kind", foreign.KINDS)
def test_pictures_that_are_not_of_the_world_share_no_family_between_the_splits(kind: str) -> None:
    families = {split: foreign._FAMILIES[split].get(kind, ()) for split in ("train", "test")}
    assert not set(families["train"]) & set(families["test"])
    assert not set(foreign.WORDS["train"].split()) & set(foreign.WORDS["test"].split())
    photographs = foreign.open_photographs(sorted(foreign.PHOTOGRAPHS.glob("*.jpg")))
    for split in ("train", "test"):
        drawn = [foreign.foreign_picture(kind, split, photographs, random.Random(7)) for _ in range(2)]
        assert drawn[0].tobytes() == drawn[1].tobytes()
        assert drawn[0].size == (IMAGE_SIZE,) * 2 and drawn[0].mode == "RGB"


def test_no_photograph_that_is_judged_on_is_among_those_of_training() -> None:
    judged = {path.stem for path in foreign.PHOTOGRAPHS.glob("*.jpg")}
    trained = {path.stem for path in installed_photographs()}
    assert len(judged) >= 5 and not trained & (judged | JUDGED_ON)
