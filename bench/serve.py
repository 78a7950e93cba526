"""The engine beside plain `generate`: answers and tokens a second of several clients, and how long each waits.

Both go from a conversation with an image to its text, on the same weights, fp32, greedy. `generate` answers one
conversation after the other, as transformers alone would serve. The clients are threads that ask again as soon as
they are answered; a wait is from the question to its first token, image decoding included, and the first question of
each client is left out of the waits, for they all come at once.

eden-tiny answers the world's questions (a few tokens) and describes its pictures (some 22 tokens). The middle size has
random weights and writes 32 to 96 tokens, as many as LLaVA-Instruct's answers have.
"""

import argparse
import statistics
import threading
import time
from collections.abc import Sequence

import numpy as np
import PIL.Image
import torch
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, Phi3Config

import eden
from bench.machine import describe
from bench.timing import timed
from eden.checkpoint import Checkpoint
from eden.core.processes import run_in_thread
from eden.evaluate import open_task
from eden.inference.assistant import Assistant
from eden.inference.engine import Engine
from eden.inference.sampling import Sampling
from eden.media.images import open_image
from eden.messages import Message, to_chat
from eden.model import MultimodalPhiConfig, MultimodalPhiForConditionalGeneration, MultimodalPhiProcessor
from tiny_build.tokenizer import FIRST_PIECES, PRINTABLE, phi_tokenizer

CLIENTS = (1, 2, 4, 8, 16)
SHORTEST, LONGEST = 32, 96

Question = tuple[Sequence[Message], Sampling]


def main() -> None:
    """Prints, for each workload, a table of rates and waits, after checking that the answers are the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=["tiny", "middle"], default=["tiny", "middle"])
    for name in parser.parse_args().models:
        if name == "tiny":
            assistant = run_in_thread(lambda: eden.load("eden-tiny", dtype="float32"))
            messages = [question.messages for question in open_task("world", limit=256).groups["accuracy"]]
            sampling = Sampling(max_new_tokens=96)
            compare("eden-tiny, questions", assistant, [(asked, sampling) for asked in messages])
            images = [image.source for asked in messages for image in asked[-1].images]
            describe_them = [([Message.user("Describe the picture.", [image])], sampling) for image in images[:128]]
            compare("eden-tiny, descriptions", assistant, describe_them)
        else:
            compare("middle size", *run_in_thread(lambda: middle(64)), at_a_time=20)


def compare(name: str, assistant: Assistant, questions: Sequence[Question], at_a_time: int | None = None) -> None:
    """Asks all questions of the engine, and of `generate` the first `at_a_time` (None: all)."""
    parameters = sum(parameter.numel() for parameter in assistant.checkpoint.core.parameters())
    run_in_thread(lambda: [plain(assistant, *question) for question in questions[:3]])
    answered, seconds = timed(
        lambda: run_in_thread(lambda: [plain(assistant, *question) for question in questions[:at_a_time]])
    )
    singles, lengths = zip(*answered, strict=True)
    alone, tokens_alone = len(answered) / seconds, sum(lengths) / seconds
    print(f"\n{name}: {parameters / 1e6:.0f} M parameters, {len(questions)} questions with an image each")
    print("clients       answers/s  ratio  tokens/s  first token p50 [ms]  p95 [ms]  p95 to one client's  same answers")
    print(f"generate {alone:14.2f} {1:6.2f} {tokens_alone:9.0f}")
    lone = None
    for clients in CLIENTS:
        answers, seconds, waits, tokens = ask(assistant, questions, clients)
        rate, p95 = len(answers) / seconds, percentile_95(waits)
        lone = lone or p95
        same = sum(a == b for a, b in zip(singles, answers, strict=False))
        print(
            f"{clients:7d} {rate:15.2f} {rate / alone:6.2f} {tokens / seconds:9.0f} "
            f"{statistics.median(waits) * 1000:21.0f} {p95 * 1000:9.0f} {p95 / lone:20.2f} {same:9d} of {len(singles)}"
        )


def ask(assistant: Assistant, questions: Sequence[Question], clients: int) -> tuple[list[str], float, list[float], int]:
    """The answers, the seconds they took, the seconds from each question to its first token, and all their tokens."""
    answers, waits = [""] * len(questions), []
    left = iter(enumerate(questions))
    lock = threading.Lock()

    def client(engine: Engine) -> None:
        first = True
        while True:
            with lock:
                index, (messages, sampling) = next(left, (-1, ([], Sampling())))
            if index < 0:
                return
            asked_at = time.monotonic()
            generation = engine.submit(assistant.request(messages, sampling))
            answers[index] = generation.wait().text.strip()
            if not first:
                waits.append((generation.first_token_at or 0.0) - asked_at)
            first = False

    with Engine(assistant.checkpoint) as engine:
        engine.submit(assistant.request(*questions[0])).wait()
        threads = [threading.Thread(target=client, args=(engine,)) for _ in range(clients)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return answers, time.perf_counter() - started, waits, engine.stats().completion_tokens


@torch.inference_mode()
def plain(assistant: Assistant, messages: Sequence[Message], sampling: Sampling) -> tuple[str, int]:
    """What transformers does for one conversation: the answer, and its tokens."""
    processor = assistant.processor
    example = processor.encode(to_chat(messages, open_image), add_generation_prompt=True)
    ids = torch.tensor([example["input_ids"]])
    output = assistant.checkpoint.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=example["pixel_values"],
        **sampling.for_generate(),
    )
    new = output[0, ids.shape[1] :]
    return processor.decode(new, skip_special_tokens=True).strip(), len(new)


def percentile_95(seconds: Sequence[float]) -> float:
    return statistics.quantiles(seconds, n=20)[-1]


def middle(number: int) -> tuple[Assistant, list[Question]]:
    """CLIP ViT-B/32's shape with patches, and a Phi-3 of 12 layers, 768 wide, 32064 rows; all random."""
    torch.manual_seed(0)
    pieces = [*FIRST_PIECES, "▁", *PRINTABLE]
    pieces += [f"▁w{index}" for index in range(32_000 - len(pieces))]
    tokenizer = phi_tokenizer({piece: index for index, piece in enumerate(pieces)}, merges=[])
    text_config = Phi3Config(
        vocab_size=32_064, hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12
    )
    config = MultimodalPhiConfig(
        vision_config=CLIPVisionConfig(projection_dim=512),
        text_config=text_config,
        vision_feature="patches",
        image_token_id=len(tokenizer),
    )
    model = MultimodalPhiForConditionalGeneration(config).eval()
    for parameter in model.model.language_model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.05)  # wide enough that the likeliest token is no matter of rounding
    model.generation_config.eos_token_id = None
    processor = MultimodalPhiProcessor(CLIPImageProcessorPil(), tokenizer, num_image_tokens=config.num_image_tokens)
    noise = np.random.default_rng(0)
    questions: list[Question] = []
    for index in range(number):
        image = PIL.Image.fromarray(noise.integers(0, 256, (224, 224, 3), dtype=np.uint8))
        sampling = Sampling(max_new_tokens=int(noise.integers(SHORTEST, LONGEST + 1)))
        questions.append(([Message.user(f"What is to be seen in picture {index}, and where?", [image])], sampling))
    return Assistant(Checkpoint(model, processor, "middle", None)), questions


if __name__ == "__main__":
    print(f"machine: {describe()}")
    main()
