"""Asking: whole, streamed, in conversation, in batches. On a random model, so the words mean nothing but are exact."""

import pytest
import torch
from conftest import make_image, make_model, make_processor

from eden import ContextError, ImageError, Message, MessageError
from eden.checkpoint import Checkpoint
from eden.inference.assistant import Assistant, Sampling


@pytest.fixture(scope="module")
def assistant() -> Assistant:
    model = make_model("patches")
    return Assistant(Checkpoint(model, make_processor(model.config.num_image_tokens), "random", None))


def test_streamed_pieces_make_the_whole_answer(assistant: Assistant) -> None:
    arguments = {"images": [make_image("red")], "max_new_tokens": 12}
    deltas = list(assistant.stream("which colour", **arguments))
    assert deltas
    assert "".join(deltas) == assistant.ask("which colour", **arguments)


def test_the_answer_is_that_of_plain_generate(assistant: Assistant) -> None:
    messages = [Message.user("which colour", [make_image("red")])]
    inputs = assistant.processor.encode(
        [
            {
                "role": "user",
                "content": [{"type": "image", "image": make_image("red")}, {"type": "text", "text": "which colour"}],
            }
        ],
        add_generation_prompt=True,
    )
    ids = torch.tensor([inputs["input_ids"]])
    output = assistant.checkpoint.core.generate(
        ids, pixel_values=inputs["pixel_values"], max_new_tokens=12, do_sample=False
    )
    expected = assistant.processor.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip()
    assert assistant.ask("which colour", [make_image("red")], max_new_tokens=12).strip() == expected
    assert assistant.answer_all([messages], max_new_tokens=12) == [expected]


def test_answers_do_not_depend_on_the_batch(assistant: Assistant) -> None:
    conversations = [
        [Message.user("hello")],
        [Message.user("which colour is this one here", [make_image("red")])],
        [Message.user("compare", [make_image("red"), make_image("blue")])],
        [Message.user("a"), Message.assistant("b"), Message.user("c", [make_image("lime")])],
    ]
    together = assistant.answer_all(conversations, max_new_tokens=8, batch_size=4)
    alone = assistant.answer_all(conversations, max_new_tokens=8, batch_size=1)
    assert together == alone
    assert len(set(alone)) > 1


def test_a_chat_remembers(assistant: Assistant) -> None:
    chat = assistant.chat(max_new_tokens=6)
    first = chat.ask("which colour", images=[make_image("red")])
    second = chat.ask("and now")
    assert [message.role for message in chat.messages] == ["user", "assistant", "user", "assistant"]
    assert [message.text for message in chat.messages[1::2]] == [first, second]
    replayed = assistant.answer_all([chat.messages[:3]], max_new_tokens=6)[0]
    assert replayed == second.strip()


def test_sampling_is_repeatable_with_a_seed(assistant: Assistant) -> None:
    draw = {"max_new_tokens": 12, "temperature": 5.0}
    answers = [assistant.ask("hello", **draw, seed=seed) for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]


def test_a_closed_stream_stops_the_work(assistant: Assistant) -> None:
    """The generator joins its worker; closing must not wait for two thousand tokens."""
    stream = assistant.reply([Message.user("hello")], Sampling(max_new_tokens=2000))
    next(stream)
    stream.close()
    assert assistant.ask("hello", max_new_tokens=2)


def test_what_cannot_be_asked_is_refused(assistant: Assistant) -> None:
    with pytest.raises(MessageError, match="empty"):
        assistant.ask("  ")
    with pytest.raises(ImageError, match=r"gone\.png: no such image file"):
        assistant.ask("hi", images=["gone.png"])
    with pytest.raises(MessageError, match="last turn"):
        list(assistant.reply([Message.user("a"), Message.assistant("b")], Sampling()))
    with pytest.raises(MessageError, match="starts with the assistant"):
        assistant.answer_all([[Message.assistant("a"), Message.user("b")]])


def test_too_long_for_the_model_says_both_numbers(assistant: Assistant) -> None:
    with pytest.raises(ContextError, match=r"4,096 tokens; .* has 4,0\d\d and .* may take 256"):
        assistant.ask("a" * 4000)
