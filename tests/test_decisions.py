"""Decisions against brute force: the whole conversation scored once for each answer, without a cache."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from conftest import make_image, make_model, make_processor

from eden import InputError, Message, MessageError
from eden.checkpoint import Checkpoint
from eden.core.answers import AnswerSet
from eden.inference import decisions
from eden.inference.assistant import Assistant
from eden.inference.decisions import DecisionQuestion
from eden.media.images import open_image
from eden.messages import to_chat
from eden.model.loss import IGNORE_INDEX


def make_assistant(vision_feature: str = "patches", attention: str = "sdpa", **of_text: int) -> Assistant:
    model = make_model(vision_feature)
    model.model.language_model.set_attn_implementation(attention)
    for name, value in of_text.items():
        setattr(model.config.text_config, name, value)
    return Assistant(Checkpoint(model, make_processor(model.config.num_image_tokens), "random", None))


@pytest.fixture(scope="module")
def assistant() -> Assistant:
    return make_assistant()


@torch.inference_mode()
def brute_force(assistant: Assistant, messages: Sequence[Message], answers: AnswerSet) -> list[float]:
    """Logarithmic probabilities by one pass over question and answer for each spelling."""
    totals = []
    for answer in answers.answers:
        total = 0.0
        for text in answers.spellings(answer):
            example = assistant.processor.encode(to_chat([*messages, Message.assistant(text)], open_image))
            ids, labels = (torch.tensor([example[name]]) for name in ("input_ids", "labels"))
            logits = assistant.checkpoint.model(input_ids=ids, pixel_values=example.get("pixel_values")).logits
            said = labels[0, 1:] != IGNORE_INDEX
            total += math.exp(logits[0, :-1].double().log_softmax(-1)[said, ids[0, 1:][said]].sum().item())
        totals.append(math.log(total))
    return totals


def normalised(logs: Sequence[float]) -> list[float]:
    return torch.tensor(logs, dtype=torch.float64).softmax(-1).tolist()


QUESTIONS = [
    ("is it cracked", AnswerSet.of()),
    ("which", AnswerSet.of(["hex", "hex nut", "hex nut long", "b"])),
    ("how bad is this one here", AnswerSet.of(levels=["none", "slight", "bad"])),
    ("which letter", AnswerSet.of([chr(97 + place) for place in range(20)])),
]


@pytest.mark.parametrize("vision_feature", ["pooled", "patches"])
@pytest.mark.parametrize("attention", ["sdpa", "eager", "packed_sdpa"])
def test_probabilities_are_those_of_brute_force(vision_feature: str, attention: str) -> None:
    """Answers that are the beginning of another, and questions of one picture, of another, of two and of none."""
    assistant = make_assistant(vision_feature, attention)
    red, blue = make_image("red"), make_image("blue")
    asked = [
        ([Message.user(text, images)], answers)
        for images in ([red], [blue], [red, blue], [])
        for text, answers in QUESTIONS
    ]
    asked.append(
        ([Message.user("a", [red]), replace(Message.assistant("b"), learnt=False), Message.user("c")], QUESTIONS[1][1])
    )
    conversations, sets = [messages for messages, _ in asked], [answers for _, answers in asked]
    scores, found = assistant.score_answers(conversations, sets), assistant.decide_all(conversations, sets)
    for (messages, answers), logs, decision in zip(asked, scores, found, strict=True):
        expected = brute_force(assistant, messages, answers)
        assert logs == pytest.approx(expected, abs=1e-3)
        assert list(decision.probabilities) == list(answers.answers)
        assert list(decision.probabilities.values()) == pytest.approx(normalised(expected), abs=1e-4)
    assert assistant.checkpoint.config.text_config._attn_implementation == attention


def test_a_sliding_window_hides_from_branches_what_it_hides_from_a_row() -> None:
    messages, answers = [Message.user("how bad is this one here", [make_image("red")])], QUESTIONS[2][1]
    windowed = make_assistant(sliding_window=6)
    expected = brute_force(windowed, messages, answers)
    assert windowed.score_answers([messages], [answers])[0] == pytest.approx(expected, abs=1e-3)
    assert brute_force(make_assistant(), messages, answers) != pytest.approx(expected, abs=0.1)


def test_the_order_of_choices_changes_nothing(assistant: Assistant) -> None:
    picture, choices = make_image("red"), ["hex", "hex nut", "b", "a long one"]
    there = assistant.decide("which", [picture], choices=choices)
    back = assistant.decide("which", [picture], choices=choices[::-1])
    assert there.probabilities == back.probabilities and there.answer == back.answer


def test_answers_in_parts_are_those_at_once(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = [DecisionQuestion(text, answers, text) for text, answers in QUESTIONS]
    at_once = assistant.decide_each(questions, [make_image("red")])
    monkeypatch.setattr(decisions, "BRANCH_TOKENS", 30)
    in_parts = assistant.decide_each(questions, [make_image("red")])
    for one, other in zip(at_once, in_parts, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)
    assert [decision.name for decision in in_parts] == [question.text for question in questions]


def test_255_choices(assistant: Assistant) -> None:
    choices = [f"{a}{b}" for a in "abcdefghijklmnop" for b in "abcdefghijklmnop"][:255]
    found = assistant.decide("which", [make_image("red")], choices=choices)
    expected = brute_force(assistant, [Message.user("which", [make_image("red")])], AnswerSet.of(choices))
    assert list(found.probabilities.values()) == pytest.approx(normalised(expected), abs=1e-4)


def test_a_picture_is_read_once_for_all_questions(assistant: Assistant) -> None:
    """The tower sees it once, and the language model's tokens are those of one prompt and of the questions' ends."""
    model, seen, tokens = assistant.checkpoint.core.model, [], []
    hooks = [
        model.vision_tower.vision_model.embeddings.register_forward_pre_hook(
            lambda module, args: seen.append(len(args[0]))
        ),
        model.language_model.register_forward_pre_hook(
            lambda module, args, kwargs: tokens.append(kwargs["inputs_embeds"].shape[:2].numel()), with_kwargs=True
        ),
    ]
    questions = [DecisionQuestion(f"is there the letter {chr(97 + place)}", AnswerSet.of()) for place in range(20)]
    try:
        assistant.decide_each(questions, [make_image("red")])
    finally:
        for hook in hooks:
            hook.remove()
    prompts = [
        assistant.encode([Message.user(question.text, [make_image("red")])])["input_ids"] for question in questions
    ]
    assert seen == [1]
    prefix, *ends = tokens
    assert prefix == len(prompts[0]) - 3  # all but the letter, <|end|> and <|assistant|>
    spelt = sum(len(text) for text in AnswerSet.of().all_spellings) * 2  # of bytes and letters, no more
    assert sum(ends) < 20 * (3 + spelt)


def test_a_decision_says_what_is_likeliest_and_how_sure_it_is() -> None:
    levels = AnswerSet.of(levels=["none", "slight", "bad"])
    even = decisions.Decision.of(levels, [-5.0, -5.0, -5.0])
    assert even.confidence == pytest.approx(0) and even.score == pytest.approx(2)
    sure = decisions.Decision.of(levels, [-500.0, -900.0, 0.0], name="how bad")
    assert sure.confidence == pytest.approx(1) and sure.answer == "bad" and sure.score == pytest.approx(3)
    unsure = decisions.Decision.of(AnswerSet.of(["a", "b"]), [math.log(0.3), math.log(0.1)])
    assert unsure.probabilities == pytest.approx({"a": 0.75, "b": 0.25})
    entropy = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    assert unsure.confidence == pytest.approx(1 - entropy) and unsure.score is None
    assert sure.to_dict()["name"] == "how bad"


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"choices": ["ok"]}, "1 choices"),
        ({"choices": [str(number) for number in range(256)]}, "256 choices"),
        ({"choices": ["ok", "ok "]}, "'ok' stands twice"),
        ({"choices": ["ok", " "]}, "one of the choices is empty"),
        ({"levels": ["low"]}, "1 levels"),
        ({"choices": ["a", "b"], "levels": ["a", "b"]}, "both choices and levels"),
        ({"choices": "ab"}, "the answers are one string"),
        ({"choices": ["a", "b<|end|>"]}, "control token <|end|>"),
    ],
)
def test_what_is_no_set_of_answers_is_refused(assistant: Assistant, options: dict[str, list[str]], what: str) -> None:
    with pytest.raises(InputError, match=what.replace("|", r"\|")) as found:
        assistant.decide("which", **options)
    assert "\n" not in str(found.value)


def test_an_empty_question_is_refused(assistant: Assistant) -> None:
    with pytest.raises(MessageError, match="empty"):
        assistant.decide(" ", choices=["a", "b"])
