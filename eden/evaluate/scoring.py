"""Judging an answer the way each benchmark's own scorer does.

The rules are those of the published scorers, oddities included, because a number is only worth comparing if it was
counted the same way. Where a rule looks strange, the comment says that it is theirs.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from ..core.answers import exact_match
from .metrics import Measure, Scores

# POPE: https://github.com/AoiDragon/POPE, evaluate.py

POPE_MEASURES = {
    "accuracy": Measure(("right",)),
    "precision": Measure(("hit",), ("said_yes",)),
    "recall": Measure(("hit",), ("is_yes",)),
    "f1": Measure(("hit",), ("said_yes", "is_yes"), factor=2),
    "yes_ratio": Measure(("said_yes",)),
}


def says_yes(answer: str) -> bool:
    """POPE's reading of a free answer: everything is a yes unless the first sentence has the word no, No or not."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


def pope(label: str, answer: str) -> Scores:
    yes, said = label == "yes", says_yes(answer)
    return {"right": yes == said, "hit": yes and said, "said_yes": said, "is_yes": yes}


# VQAv2: https://github.com/GT-Vision-Lab/VQA, vqaEval.py

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(NUMBER_WORDS)}
ARTICLES = frozenset(("a", "an", "the"))
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
PERIOD = re.compile(r"\.(?!\d)")
PERIODS_REMOVED = 32  # theirs: a flag is passed where the number of replacements is expected
COMMA_IN_NUMBER = re.compile(r"\d,\d")
CONTRACTED = """
    'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
    he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't
    needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
    somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""
CONTRACTIONS = {
    word[:at] + word[at + 1 :]: word for word in CONTRACTED.split() for at, letter in enumerate(word) if letter == "'"
}
"""From a contraction with one apostrophe forgotten to the whole one."""
CONTRACTIONS["somebody'd"] = "somebodyd"  # theirs, the wrong way round


def vqa_plain(answer: str) -> str:
    """An answer as VQAv2 compares it: lower case, digits for number words, no punctuation, no articles."""
    text = vqa_unpunctuated(answer.replace("\n", " ").replace("\t", " ").strip())
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


@lru_cache(maxsize=2**16)  # the same few words millions of times
def vqa_unpunctuated(text: str) -> str:
    """Each sign becomes a space, but nothing where it stands beside a space or where the text has a comma in a number.

    Periods go, except before a digit; colons and apostrophes stay.
    """
    grouped = COMMA_IN_NUMBER.search(text) is not None
    result = text
    for sign in PUNCTUATION:
        beside_space = f"{sign} " in text or f" {sign}" in text
        result = result.replace(sign, "" if beside_space or grouped else " ")
    return PERIOD.sub("", result, count=PERIODS_REMOVED)


def vqa_references(answers: Sequence[str]) -> tuple[str, ...]:
    """The annotators' answers as an answer is compared with them: punctuation goes only where they disagree."""
    return _some(tuple(map(vqa_unpunctuated, answers) if len(set(answers)) > 1 else answers))


def _some(answers: tuple[str, ...]) -> tuple[str, ...]:
    if not answers:
        raise ValueError("nobody answered it")
    return answers


def vqa(references: Sequence[str], answer: str) -> Scores:
    return {"score": agreement(references, vqa_plain(answer))}


def agreement(references: Sequence[str], answer: str) -> float:
    """Soft accuracy: min(1, annotators who say the same / 3), averaged over leaving each of the annotators out."""
    same, total = sum(reference == answer for reference in references), len(references)
    without_one_of_them, without_another = min(1.0, (same - 1) / 3), min(1.0, same / 3)
    return (same * without_one_of_them + (total - same) * without_another) / total


# TextVQA: the accuracy of MMF (https://github.com/facebookresearch/mmf), `EvalAIAnswerProcessor`


def textvqa_plain(answer: str) -> str:
    """VQAv2's comparison after a step of its own: commas and question marks go, and 's is a word by itself."""
    return vqa_plain(answer.lower().replace(",", "").replace("?", "").replace("'s", " 's"))


def textvqa_references(answers: Sequence[str]) -> tuple[str, ...]:
    return _some(tuple(map(textvqa_plain, answers)))


def textvqa(references: Sequence[str], answer: str) -> Scores:
    return {"score": agreement(references, textvqa_plain(answer))}


# GQA: https://cs.stanford.edu/people/dorarad/gqa, eval.py, which compares as is; before that, answers become lower
# case and lose a final period, as LLaVA's have it


def gqa(expected: str, answer: str) -> Scores:
    return {"right": answer.strip().rstrip(".").lower() == expected}


# ScienceQA: https://github.com/haotian-liu/LLaVA, eval_science_qa.py. The paper's own scorer guesses where no option
# is named; here as there that is wrong.

LETTERS = "ABCDE"
LETTER_NAMED = [
    re.compile(rule) for rule in (r"^([A-E])(?:$|\. )", r"The answer is ([A-E])\.", r"The answer is ([A-E])")
]


def letter(answer: str) -> str | None:
    """The option an answer names: `B`, `B. ...`, or `The answer is B` anywhere, which counts first before a period."""
    text = answer.replace("\n", ". ").strip()
    found = next(filter(None, (rule.search(text) for rule in LETTER_NAMED)), None)
    return found[1] if found else None


def scienceqa(right: str, answer: str) -> Scores:
    return {"right": letter(answer) == right}


# Data files


def token_f1(expected: str, answer: str) -> float:
    """The harmonic mean of precision and recall of the words, without case, punctuation and articles.

    Source: P. Rajpurkar et al., SQuAD, 2016. Two texts without a word agree.
    """
    wanted, said = _tokens(expected), _tokens(answer)
    if not wanted or not said:
        return float(wanted == said)
    shared = (Counter(wanted) & Counter(said)).total()
    return 2 * shared / (len(wanted) + len(said))


def reply(expected: str, answer: str) -> Scores:
    return {"right": exact_match(expected, answer), "f1": token_f1(expected, answer)}


def _tokens(text: str) -> list[str]:
    plain = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(?:a|an|the)\b", " ", plain).split()
