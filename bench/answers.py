"""Answers a second of eden-tiny in batches, beside the same questions asked one at a time through plain `generate`."""

import torch

import eden
from bench.table import Row, show
from bench.timing import timed
from eden.evaluate import open_task
from eden.media.images import open_image
from eden.messages import to_chat

QUESTIONS, BATCH = 192, 64
NEW_TOKENS = 64


def measure() -> list[Row]:
    """Both rates, and how many answers are the same."""
    assistant = eden.load("eden-tiny")
    questions = open_task("world", limit=QUESTIONS).groups["accuracy"]
    conversations = [question.messages for question in questions]
    alone(assistant, conversations[:4])
    singles, single = timed(lambda: alone(assistant, conversations))
    batched, together = timed(lambda: assistant.answer_all(conversations, max_new_tokens=NEW_TOKENS, batch_size=BATCH))
    number, same = len(singles), sum(a == b for a, b in zip(singles, batched, strict=True))
    one_by_one = f"the same {number} questions one at a time through `generate`"
    return [
        Row(f"eden-tiny, batches of {BATCH}", number / together, "answers/s", one_by_one, number / single),
        Row("answers that are the same both ways", same, "answers", "all", number),
    ]


@torch.inference_mode()
def alone(assistant, conversations) -> list[str]:
    """What transformers does for one conversation at a time."""
    processor, model = assistant.processor, assistant.checkpoint.model
    answers = []
    for messages in conversations:
        inputs = processor.apply_chat_template(
            to_chat(messages, open_image),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        output = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        answers.append(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    return answers


if __name__ == "__main__":
    show({"answers": measure()})
