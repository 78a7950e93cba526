"""Answers held to JSON schemas beside free ones: tokens a second of the engine, the same questions, the same lengths.

The schemas are lists that do not end before the answers' length is reached; each of the clients has another. Free and
held answers take turns, and the ratio is that of the rounds' medians.
"""

import argparse
import statistics
from dataclasses import replace
from typing import Any

import eden
from bench.machine import describe
from bench.serve import Question, ask, middle
from eden.core.processes import run_in_thread
from eden.evaluate import open_task
from eden.inference.assistant import Assistant
from eden.inference.sampling import Sampling
from eden.messages import Message

CLIENTS = 8
MEMBERS: list[dict[str, Any]] = [
    {"type": "string", "maxLength": 24},
    {"type": "string", "pattern": "^[a-z]+( [a-z]+)*$"},
    {"type": "integer", "minimum": 0, "maximum": 100_000},
    {"enum": ["red", "green", "blue", "yellow", None]},
    {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
    {"anyOf": [{"type": "boolean"}, {"type": "string", "format": "date"}]},
]


def main() -> None:
    """Prints a row for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=["tiny", "middle"], default=["tiny", "middle"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--questions", type=int, default=64)
    options = parser.parse_args()
    print("model      free tokens/s  with schemas tokens/s  ratio")
    for name in options.models:
        assistant, questions = run_in_thread(lambda name=name: of_model(name, options.questions))
        held = [
            (asked, replace(sampling, grammar=assistant.grammar(schema(number))))
            for number, (asked, sampling) in enumerate(questions)
        ]
        rates: dict[str, list[float]] = {"free": [], "held": []}
        for _ in range(options.rounds):
            for kind, asked in (("free", questions), ("held", held)):
                _, seconds, _, tokens = ask(assistant, asked, CLIENTS)
                rates[kind].append(tokens / seconds)
        free, with_schemas = (statistics.median(found) for found in rates.values())
        print(f"{name:10s} {free:13.0f} {with_schemas:22.0f} {with_schemas / free:6.2f}")


def schema(number: int) -> dict[str, Any]:
    members = {f"m{place}": MEMBERS[(number + place) % len(MEMBERS)] for place in range(1 + number % CLIENTS)}
    item = {"type": "object", "properties": members, "required": list(members), "additionalProperties": False}
    return {"type": "array", "items": item, "minItems": 100}


def of_model(name: str, number: int) -> tuple[Assistant, list[Question]]:
    """Questions whose free answers are as long as they may be, or nearly so."""
    if name == "middle":
        return middle(number)
    assistant = eden.load("eden-tiny", dtype="float32")
    asked = [question.messages for question in open_task("world", limit=number).groups["accuracy"]]
    images = [image.source for messages in asked for image in messages[-1].images][:number]
    return assistant, [
        ([Message.user("Describe the picture.", [image])], Sampling(max_new_tokens=20)) for image in images
    ]


if __name__ == "__main__":
    print(f"machine: {describe()}")
    main()
