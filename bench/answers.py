"""Answers a second of eden-tiny in batches, beside the same questions asked one at a time through plain `generate`."""

import time

import torch

import eden
from eden.evaluate import open_task
from eden.messages import to_chat
from eden.vision import open_image

QUESTIONS, BATCH = 192, 64
NEW_TOKENS = 64


def main() -> None:
    """Prints both rates and their ratio, after checking that the answers are the same."""
    assistant = eden.load("eden-tiny")
    questions = open_task("world", limit=QUESTIONS).groups["accuracy"]
    conversations = [question.messages for question in questions]
    alone(assistant, conversations[:4])
    started = time.perf_counter()
    singles = alone(assistant, conversations)
    single = len(singles) / (time.perf_counter() - started)
    started = time.perf_counter()
    batched = assistant.answer_all(conversations, max_new_tokens=NEW_TOKENS, batch_size=BATCH)
    together = len(batched) / (time.perf_counter() - started)
    same = sum(a == b for a, b in zip(singles, batched, strict=True))
    print(
        f"eden-tiny: {together:.0f} answers/s in batches of {BATCH}, {single:.0f} one at a time, "
        f"ratio {together / single:.1f}; {same} of {len(singles)} answers the same"
    )


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
    main()
