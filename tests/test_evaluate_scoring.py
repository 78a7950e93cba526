"""Scores as the official scorers give them: their rules on their cases, worked out by hand or by the scorer itself."""

import random
import re

import numpy as np
import pytest
from pycocoevalcap.cider.cider import Cider

from eden.evaluate import scoring
from eden.evaluate.cider import cider, tokenize
from eden.evaluate.metrics import Measure, differences, intervals, value

VQA = {
    "Yes.": "yes",
    "The Dog": "dog",
    "  a cat\n": "cat",
    "two": "2",
    "two.": "2",
    "Two, please": "2 please",
    "it's": "it's",
    "dont've": "dont've",  # not in the published list
    "u.s.a.": "usa",
    "5.": "5",
    "v2.0.": "v2.0",
    "1, 2": "1 2",
    "and/or yes": "and or yes",
    "yes / no": "yes no",
    "$5.00": "$5.00",
    "the a an": "",
    "None": "0",
    "ten dogs": "10 dogs",
    "eleven": "eleven",
    "dont": "don't",
    "they're": "they're",
    "its": "its",
    "1,000": "1000",
    "1,000-dollar": "1000dollar",  # a comma in a number anywhere: every sign goes without a space
    "red,blue": "red blue",  # between letters a sign is a space
    "red, blue": "red blue",  # beside a space it is nothing
    "black/white": "black white",
    "t-shirt": "t shirt",
    "3.5": "3.5",
    "p.m.": "pm",
    "10:30": "10:30",
    "man's": "man's",
    "what?!": "what",
    "(red)": "red",
    "an apple a day": "apple day",
    "red\tand\nblue": "red and blue",
    "somebody'd": "somebodyd",
    "couldnt've": "couldn't've",
    "": "",
}


@pytest.mark.parametrize("answer", VQA)
def test_vqa_answers_are_normalised_as_officially(answer: str) -> None:
    assert scoring.vqa_plain(answer) == VQA[answer]


def test_vqa_counts_a_third_for_each_annotator_who_agrees_leaving_one_out() -> None:
    """The published values of min(1, matches / 3) averaged over the ten subsets of nine: 0, 0.3, 0.6, 0.9, 1."""
    for matches, expected in enumerate((0.0, 0.3, 0.6, 0.9, 1.0, 1.0)):
        answers = ["red"] * matches + [f"other {number}" for number in range(10 - matches)]
        score = scoring.vqa(scoring.vqa_references(answers), "Red.")
        assert score["score"] == pytest.approx(expected)


def test_vqa_references_lose_their_punctuation_only_where_people_disagree() -> None:
    assert scoring.vqa(scoring.vqa_references(["t-shirt"] * 10), "t-shirt") == {"score": 0}
    assert scoring.vqa(scoring.vqa_references(["t-shirt"] * 9 + ["shirt"]), "t-shirt") == {"score": 1}


def test_textvqa_normalises_both_sides() -> None:
    references = scoring.textvqa_references(["Men's Wear", *["mens wear"] * 2, *["men's wear"] * 7])
    assert scoring.textvqa(references, "the Men's, wear?")["score"] == 1
    assert scoring.textvqa(references, "mens wear")["score"] == pytest.approx(0.6)


def test_pope_reads_an_answer_as_its_scorer_does() -> None:
    yes = ["Yes", "Yes, there is.", "Maybe", "", "There is none", "NO", "Yes. There is no dog.", "nothing"]
    no = ["No", "no", "No, there is not.", "There is not one", "I see no dog", "No.", "no, not at all. Yes"]
    assert all(map(scoring.says_yes, yes)) and not any(map(scoring.says_yes, no))


def test_pope_measures_are_those_of_the_confusion_counts() -> None:
    """3 hits, 1 false alarm, 2 right rejections, 2 misses, by hand."""
    asked = [("yes", "Yes")] * 3 + [("no", "Yes")] + [("no", "No")] * 2 + [("yes", "No")] * 2
    scores = [scoring.pope(*item) for item in asked]
    found = {name: value(measure, scores) for name, measure in scoring.POPE_MEASURES.items()}
    assert found == pytest.approx(
        {"accuracy": 5 / 8, "precision": 3 / 4, "recall": 3 / 5, "f1": 2 / 3, "yes_ratio": 4 / 8}
    )
    never = [scoring.pope("yes", "No"), scoring.pope("no", "No")]
    assert value(scoring.POPE_MEASURES["precision"], never) == value(scoring.POPE_MEASURES["f1"], never) == 0


def test_gqa_is_exact_but_for_case_and_a_final_period() -> None:
    assert scoring.gqa("fire truck", "Fire truck.") == {"right": True}
    assert scoring.gqa("fire truck", "a fire truck") == {"right": False}


LETTERS = {
    "B": "B",
    "A. solid": "A",
    "C\nbecause it spreads": "C",
    "The answer is B.": "B",
    "I think The answer is C": "C",
    "The answer is A or The answer is D.": "D",  # theirs: one before a period is looked for first
    "The answer is Apple": "A",  # theirs
    "E": "E",
    "B.": None,  # theirs: a period needs a space behind it
    "(C)": None,
    "A: solid": None,
    "the answer is B": None,
    "b": None,
    "solid": None,
    "Because": None,
    "": None,
}


@pytest.mark.parametrize("answer", LETTERS)
def test_scienceqa_finds_the_letter_that_llavas_scorer_finds(answer: str) -> None:
    assert scoring.letter(answer) == LETTERS[answer]
    assert scoring.scienceqa("B", answer) == {"right": LETTERS[answer] == "B"}


def test_replies_are_marked_by_exact_match_and_token_f1() -> None:
    assert scoring.reply("A red circle.", " a red  Circle") == {"right": True, "f1": 1}
    partly = scoring.reply("A large red circle.", "The red circle, I think")
    assert partly == {"right": False, "f1": pytest.approx(2 * 2 / (3 + 4))}
    assert scoring.token_f1("the", "a") == 1 and scoring.token_f1("red", "") == 0
    assert scoring.token_f1("red red", "red") == pytest.approx(2 / 3)
    assert scoring.token_f1("the–end", "–end") == 1, "SQuAD's articles are words by the regular expression's bounds"
    assert scoring.reply("A", "B") == {"right": False, "f1": 0} and not scoring.exact_match("A", "")


# What the official tokenizer (Stanford's, in Java, as pycocoevalcap calls it) makes of these.
TOKENS = {
    "A man's hat, isn't it? Don't go; it's 5:30 p.m.": "a man 's hat is n't it do n't go it 's 5:30 p.m.",
    "two (red) t-shirts - and a half-eaten sandwich...": "two -lrb- red -rrb- t-shirts and a half-eaten sandwich",
    'He said "hello" -- then left!': "he said hello then left",
    "The U.S. flag & 50% off: $3.50, 1,000 people/animals": "the u.s. flag & 50 % off $ 3.50 1,000 people/animals",
    "cannot gonna wanna": "can not gon na wan na",
    "dogs' bowls and the '90s car's wheel": "dogs bowls and the '90s car 's wheel",
    "A man in a no. 5 jersey, Mr. Smith.": "a man in a no. 5 jersey mr. smith",
    "A plate with broccoli ,rice and meat .": "a plate with broccoli rice and meat",
    "rock 'n' roll 'tis": "rock 'n' roll 't is",
    "8 o'clock, 12:00pm, 3-D 8x10": "8 o'clock 12:00 pm 3-d 8x10",
    "the 4'x8' board, 20's": "the 4 x8 board 20 's",
    "A group of people on Main St.": "a group of people on main st.",
    "w/ a guy in t-shirt&jeans": "w / a guy in t-shirt & jeans",
    "A chef @ a restaurant!!": "a chef @ a restaurant !!",
    "W. 42nd St. is 30,000 ft. below, plan B.": "w. 42nd st. is 30,000 ft. below plan b.",
    "-5 degrees, 10-15 people, b+3": "-5 degrees 10-15 people b +3",
    "the '57 Chevy, 'til '123": "the '57 chevy 'til 123",
    "me@mail.com or http://a.com/b #1 #tag": "me@mail.com or http://a.com/b # 1 #tag",
    "Mt. Hood in Jan. with a Ph.D. student": "mt. hood in jan. with a ph.d. student",
    "11p.m. at 30°": "11p m. at 30 °",
}


@pytest.mark.parametrize("caption", TOKENS)
def test_captions_are_cut_into_the_words_of_the_official_tokenizer(caption: str) -> None:
    assert " ".join(tokenize(caption)) == TOKENS[caption]


def test_cider_is_that_of_pycocoevalcap() -> None:
    rng = random.Random(0)
    words = re.findall(r"\S+", "a man dog on the red bus street riding horse people's isn't ( old ) train-track near")
    people = [[" ".join(rng.choices(words, k=rng.randint(1, 14))) for _ in range(5)] for _ in range(60)]
    said = [
        rng.choice(captions) if rng.random() < 0.4 else " ".join(rng.choices(words, k=rng.randint(0, 20)))
        for captions in people
    ]
    plain = [[" ".join(tokenize(caption)) for caption in captions] for captions in people]
    theirs, each = Cider().compute_score(
        dict(enumerate(plain)), {index: [" ".join(tokenize(answer))] for index, answer in enumerate(said)}
    )
    mine = cider(people, said)
    assert [score["cider"] for score in mine] == pytest.approx(list(each))
    assert value(Measure(("cider",)), mine) == pytest.approx(theirs) and theirs > 0.5


ACCURACY = {"accuracy": Measure(("right",))}


def test_intervals_are_those_of_drawing_questions_again_and_again() -> None:
    rng = np.random.default_rng(7)
    scores = [scoring.pope(*rng.choice(["yes", "no"], 2)) for _ in range(150)]
    drawn = [
        value(scoring.POPE_MEASURES["f1"], [scores[index] for index in rng.integers(150, size=150)])
        for _ in range(1500)
    ]
    found = intervals(scoring.POPE_MEASURES, scores)
    assert found["f1"] == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])), abs=0.015)
    assert found == intervals(scoring.POPE_MEASURES, scores), "the same every time"
    thousand = [{"right": float(index < 800)} for index in range(1000)]
    assert intervals(ACCURACY, thousand)["accuracy"] == pytest.approx((0.775, 0.825), abs=0.003)  # 1.96 sigma


def test_a_difference_is_surer_where_two_models_find_the_same_questions_hard() -> None:
    first = [{"right": float(index < 120)} for index in range(200)]
    same_but_ten = [{"right": float(index < 110)} for index in range(200)]
    turned_round = same_but_ten[::-1]
    difference, (low, high) = differences(ACCURACY, first, same_but_ten)["accuracy"]
    assert difference == pytest.approx(0.05) and 0 < low < 0.05 < high
    other, (lower, higher) = differences(ACCURACY, first, turned_round)["accuracy"]
    assert other == pytest.approx(0.05) and lower < 0 and higher - lower > 2 * (high - low)
    by_itself = [str(index) for index in range(200)]
    assert differences(ACCURACY, first, turned_round, by_itself)["accuracy"][1] == pytest.approx(
        (lower, higher), abs=0.02
    )


def test_clusters_are_resampled_whole() -> None:
    """Their own numbers of questions count; beside it a plain loop that draws clusters."""
    rng = np.random.default_rng(1)
    clusters = [str(name) for name in np.repeat(range(12), range(2, 26, 2))]
    luck = dict(zip(sorted(set(clusters)), rng.random(12), strict=True))
    first = [{"right": float(rng.random() < luck[name])} for name in clusters]
    second = [{"right": float(rng.random() < 0.3)} for _ in clusters]
    gaps = np.array([one["right"] - other["right"] for one, other in zip(first, second, strict=True)])
    members = [np.flatnonzero(np.array(clusters) == name) for name in luck]
    drawn = [gaps[np.concatenate([members[at] for at in rng.integers(12, size=12)])].mean() for _ in range(2000)]
    gap, ends = differences(ACCURACY, first, second, clusters)["accuracy"]
    assert gap == pytest.approx(gaps.mean()) and ends == pytest.approx(
        tuple(np.percentile(drawn, [2.5, 97.5])), abs=0.02
    )
    _, by_question = differences(ACCURACY, first, second)["accuracy"]
    assert ends[1] - ends[0] > 1.5 * (by_question[1] - by_question[0])
