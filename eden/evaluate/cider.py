"""CIDEr-D: how well a caption agrees with several people's, in n-grams weighted by how rare they are.

Source: R. Vedantam et al., CIDEr: consensus-based image description evaluation, 2015; the numbers are those of
pycocoevalcap (https://github.com/salaniz/pycocoevalcap).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

from .metrics import Scores

LONGEST = 4
"""Words in the longest n-gram."""
SIGMA = 6.0
"""How fast a caption of another length loses, in words."""
SCALE = 10.0

Ngram: TypeAlias = tuple[str, ...]


def cider(references: Sequence[Sequence[str]], answers: Sequence[str]) -> list[Scores]:
    """CIDEr-D of each answer, from 0 to 10; the corpus' score is their mean.

    An n-gram is as rare as the images are few whose references have it: a score depends on all the images asked about.

    Args:
        references: several captions of each image.
        answers: one caption of each image.
    """
    people = [[_ngrams(tokenize(caption)) for caption in captions] for captions in references]
    images_with = Counter(ngram for captions in people for ngram in {ngram for counts in captions for ngram in counts})
    images = math.log(len(people)) if people else 0.0
    rarity = {ngram: images - math.log(number) for ngram, number in images_with.items()}
    scores: list[Scores] = []
    for captions, answer in zip(people, answers, strict=True):
        said = _Vector(_ngrams(tokenize(answer)), rarity, images)
        agreement = sum(said.agreement(_Vector(counts, rarity, images)) for counts in captions)
        scores.append({"cider": SCALE * agreement / len(captions)})
    return scores


class _Vector:
    """A caption's n-grams, each weighted by how often it has them and by how rare they are."""

    def __init__(self, counts: Counter[Ngram], rarity: dict[Ngram, float], unseen: float):
        self.weights: list[dict[Ngram, float]] = [{} for _ in range(LONGEST)]
        for ngram, number in counts.items():
            self.weights[len(ngram) - 1][ngram] = number * rarity.get(ngram, unseen)
        self.norms = [math.sqrt(sum(weight**2 for weight in weights.values())) for weights in self.weights]
        self.length = sum(number for ngram, number in counts.items() if len(ngram) == 2)  # theirs: counted in pairs

    def agreement(self, other: _Vector) -> float:
        """The mean over the n of a cosine in which this caption cannot gain by repeating itself."""
        total = 0.0
        norms = [mine * theirs for mine, theirs in zip(self.norms, other.norms, strict=True)]
        for mine, theirs, norm in zip(self.weights, other.weights, norms, strict=True):
            if norm:
                shared = [ngram for ngram in mine if ngram in theirs]
                total += sum(min(mine[ngram], theirs[ngram]) * theirs[ngram] for ngram in shared) / norm
        return total / LONGEST * math.exp(-((self.length - other.length) ** 2) / (2 * SIGMA**2))


def _ngrams(words: Sequence[str]) -> Counter[Ngram]:
    return Counter(
        tuple(words[start : start + length])
        for length in range(1, LONGEST + 1)
        for start in range(len(words) - length + 1)
    )


APART = (("can", "not"), ("gon", "na"), ("wan", "na"), ("got", "ta"), ("lem", "me"), ("gim", "me"))
"""Words that the Penn Treebank cuts in two."""
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
"""Brackets stay, by name: the official list of what goes has these names in capitals."""
ABBREVIATIONS = """
    mr mrs ms dr st ave vs jr sr etc prof gen gov sen rep inc co corp ltd dept univ bldg blvd rd ln pl ct sq ft mt ph.d
    fig pp jan feb mar apr jun jul aug sept sep oct nov dec mon tues wed thurs fri sat sun
"""
"""What keeps its period."""
TOKEN = re.compile(
    rf"""
      n't | '(?:s|m|d|ll|re|ve)\b            # what is left of a contraction
    | '\d\ds?(?!\w) | '(?:cause|em|til)\b | '[nt]'?(?!\w)   # '90s, 'til, rock 'n' roll
    | https?://\S+ | [\w.]+@[\w.]+\w       # addresses
    | (?:[a-z]\.)+[a-z]\b\.? | [a-z]\.(?!\w) | [a-z]\.(?=[a-z]\.)   # u.s., p.m., j. smith
    | (?:{"|".join(map(re.escape, ABBREVIATIONS.split()))})\. | nos?\.(?=\ *\d)
    | \d+:\d+ | [+-]?\d+(?:[.,/]\d+)*(?:[-\w]*\w)?   # 5:30, -5, 3.50, 1,000, 1/2, 8x10
    | @\w+ | \#[a-z]\w* | <\w+>             # names and tags
    | y'(?=all)
    | [^\W\d_](?:[^\W_]|[-./_](?=[^\W_])|'(?=clock))*   # half-eaten, black/white
    | \w+
    | [()\[\]{{}}] | [%$\#&*@+=<>|~^/_°] | [!?]{{2,}}   # signs that stay
    """,
    re.VERBOSE,
)


def tokenize(caption: str) -> list[str]:
    """The words of an English caption, in lower case and without punctuation.

    Follows the Penn Treebank as the official scorer's tokenizer does, which needs Java: `n't`, `'s` and their like are
    words by themselves; words with hyphens, slashes and dots inside stay whole; brackets become `-lrb-` and so on; the
    signs . , : ; ? ! - and quotes go.
    """
    text = caption.lower()
    for curly in "’‘":
        text = text.replace(curly, "'")
    text = re.sub(r"(\w)n't\b", r"\1 n't", text)
    text = re.sub(r"(\w)('(?:s|m|d|ll|re|ve)\b)", r"\1 \2", text)
    for first, second in APART:
        text = re.sub(rf"\b{first}{second}\b", f"{first} {second}", text)
    text = re.sub(r"'t(is|was)\b", r"'t \1", text)
    return [BRACKETS.get(token, token) for token in TOKEN.findall(text)]
