"""What a model knows without a picture: measured, reported before and after training, and rehearsed."""

import json
import math
import re
import sys
from collections import Counter
from pathlib import Path

import cli
import pytest
import torch
from conftest import make_model, make_processor
from rich.console import Console

from eden import DataError, RecipeError, RunError
from eden.checkpoint import Checkpoint, load, save
from eden.cli.main import main
from eden.data.prepare import read_data
from eden.inference import knowledge
from eden.inference.knowledge import ENGLISH, Change, Knowledge, measure, read_lines
from eden.recipe import Recipe, load_recipe
from eden.training.rehearsal import own_answers, prompts_of
from eden.training.train import report, train

QUIET = Console(quiet=True)
PROMPTS = ["Hello!", "Who are you?", "What is 2 + 2?"]


def test_the_shipped_texts_are_what_they_are_said_to_be() -> None:
    assert 400 <= len((ENGLISH / "page.txt").read_text().split()) <= 600
    questions, prompts = read_lines("questions.txt"), prompts_of("shipped")
    assert len(questions) == 12 and len(prompts) == len(read_lines("prompts.txt")) >= 36
    assert not {*questions} & {*prompts}


def test_perplexity_is_that_of_plain_arithmetic() -> None:
    """Read in parts that fit the context, the first token of each behind the token that begins a text."""
    model, processor = make_model("pooled"), make_processor(1)
    model.config.text_config.original_max_position_embeddings = 500
    found = measure(Checkpoint(model, processor, "x", None), ask=True)
    text = (ENGLISH / "page.txt").read_text().strip()
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    nats = 0.0
    for start in range(0, len(ids), 499):
        part = ids[start : start + 499]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[processor.tokenizer.bos_token_id, *part]])).logits[0].float()
        nats -= sum(float(row.log_softmax(-1)[token]) for row, token in zip(logits, part, strict=False))
    assert len(ids) > 999
    assert found.perplexity == pytest.approx(math.exp(nats / len(ids)), rel=1e-3)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / len(text.encode()), rel=1e-4)
    assert list(found.answers) == read_lines("questions.txt")
    assert not found.is_english and not measure(Checkpoint(model, processor, "x", None)).answers, "it is not asked"


@pytest.mark.parametrize(
    ("before", "after", "forgotten", "said"),
    [
        (10.0, 10.2, False, r"^Perplexity .* 10\.00 .* 10\.20 .*\+2\.0%\), and 1 of 2 .* as before"),
        (10.0, 9.0, False, r"-10\.0%"),
        (10.0, 10.4, True, r"^the model has forgotten .*\+4\.0%.*data\.rehearsal"),
        (10.0, float("nan"), True, r"^the model has forgotten"),
    ],
)
def test_what_is_said_of_a_change(before: float, after: float, forgotten: bool, said: str) -> None:
    change = Change(Knowledge(before, 1.0, {"a": "b", "c": "d"}), Knowledge(after, 1.0, {"a": "b", "c": "e"}))
    assert change.has_forgotten == forgotten
    assert re.search(said, change.said)


def test_a_model_that_never_learned_english_has_none_to_lose() -> None:
    change = Change(Knowledge(1e5, 7.7), Knowledge(1e6, 9.0))
    assert not change.has_forgotten and "no language model of English" in change.said


def test_the_command_line_measures_a_model() -> None:
    result = cli.eden("evaluate", "eden-tiny", "--knows", "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["bits_per_byte"] > 2.14 and found["is_english"] is False and found["perplexity"] > 100
    assert found["answers"]["What is the capital of France?"] == "I only know about pictures of coloured shapes."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to ask"),
        (["world", "--knows"], "task says nothing beside --knows"),
        (["--knows", "--max-new-tokens", "3"], "max-new-tokens says nothing beside --knows"),
    ],
)
def test_the_command_line_is_told_one_thing(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["eden", "evaluate", "eden-tiny", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2 and message in capsys.readouterr().err


def overrides(data: Path, out: Path, *more: str) -> list[str]:
    """Three steps of eden-tiny, which change it much."""
    fixed = ["model.base=eden-tiny", "quantization=null", f"data.path={data}", "data.features=live"]
    fixed += ["data.eval_fraction=0.1", "data.split_by=sample", f"training.output_dir={out}", "training.max_steps=3"]
    return [*fixed, "training.warmup_steps=0", "training.learning_rate=1e-2", "training.eval_strategy=no", *more]


def recipe(data: Path, out: Path, *more: str) -> Recipe:
    return load_recipe("digits", overrides(data, out, *more))


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned a little of the page, letter by letter."""
    model, processor = make_model("pooled"), make_processor(1)
    begin, end = processor.tokenizer.bos_token_id, processor.tokenizer.eos_token_id
    ids = processor.tokenizer.encode((ENGLISH / "page.txt").read_text(), add_special_tokens=False)
    parts = torch.tensor(ids + [end] * (-len(ids) % 128)).view(-1, 128)
    rows = torch.cat([torch.full((len(parts), 1), begin), parts], dim=1)
    learned = [*model.model.language_model.parameters(), *model.lm_head.parameters()]
    for weight in learned:
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.05)
    optimizer = torch.optim.Adam(learned, lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
    return save(Checkpoint(model, processor, "x", None), tmp_path_factory.mktemp("english") / "model")


def test_a_run_says_last_what_it_has_forgotten(
    english: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a limit under which a model of letters passes for a language model of English."""
    monkeypatch.setattr(knowledge, "WORDS_ALONE", 4.5)
    arguments = overrides(data, tmp_path / "run", f"model.base={english}", "training.max_steps=10")
    monkeypatch.setattr(sys, "argv", ["eden", "train", "digits", *arguments, "--json"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    shown = capsys.readouterr()
    knows = json.loads(shown.out)["knows"]
    assert shown.err.splitlines()[-1] == f"warning: {knows['said']}" and "has forgotten" in knows["said"]
    assert knows["before"]["perplexity"] == pytest.approx(measure(load(str(english))).perplexity, rel=1e-4), (
        "the base's own"
    )
    trained = measure(load(str(tmp_path / "run")))
    assert knows["after"]["perplexity"] == pytest.approx(trained.perplexity, rel=1e-4)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "What it still knows" in page and "Who wrote the play Romeo and Juliet?" in page
    (tmp_path / "run" / "report.html").unlink()
    assert report(tmp_path / "run", QUIET).read_text() == page


def test_what_cannot_be_measured_loses_no_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(knowledge, "ENGLISH", tmp_path)
    result = train(recipe(data, tmp_path / "run"))
    assert "was not measured" in capsys.readouterr().err
    assert result.knows is None and result.report.exists()
    assert load(str(result.artifact)).is_adapter


# Rehearsal


def write(path: Path, number: int) -> Path:
    records = [
        {"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"{path.stem} {n}"}]}
        for n in range(number)
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    return path


@pytest.mark.parametrize(
    ("sources", "expected"),
    [(["data.path=A"], 18), (["data.path=null", "data.sources=[{path: A, weight: 2}]"], 9)],
)
def test_rehearsal_is_mixed_in_by_weight(tmp_path: Path, sources: list[str], expected: int) -> None:
    """All of the data's samples stay, none of the rehearsal's is held out, and each is taken as often as another."""
    a, text = write(tmp_path / "a.jsonl", 40), write(tmp_path / "text.jsonl", 5)
    changes = [*(part.replace("A", str(a)) for part in sources), "data.eval_fraction=0.1"]
    rehearsal = f"data.rehearsal={{path: {text}, weight: 0.5}}"
    mixed, held_out, _ = read_data(load_recipe("digits", [*changes, rehearsal]), QUIET)
    answers = Counter(sample.messages[1].text for sample in mixed)
    of_text = {answer: number for answer, number in answers.items() if answer.startswith("text")}
    assert len(held_out) == 4 and all(sample.messages[1].text.startswith("a ") for sample in held_out)
    assert len(mixed) == 36 + expected and sum(of_text.values()) == expected
    assert max(of_text.values()) - min(of_text.values()) <= 1 and set(answers.values()) <= {1, *of_text.values()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["data.rehearsal={weight: 1}"], "data.rehearsal names nothing"),
        (["data.rehearsal={path: b, prompts: shipped, weight: 1}"], "names both path and prompts"),
        (["data.rehearsal={prompts: shipped}"], r"data\.rehearsal\.weight is missing"),
        (["data.rehearsal={prompts: shipped, weight: 0}"], r"data\.rehearsal\.weight is 0"),
        (["data.rehearsal={prompt: shipped, weight: 1}"], "Did you mean prompts"),
        (["data.rehearsal={path: ./x/../a, weight: 1}"], r"names \./x/\.\./a, which is trained on already"),
        (["data.rehearsal={prompts: shipped, weight: 1}", "lora=null"], "teaches nothing without a lora section"),
    ],
)
def test_an_impossible_rehearsal_is_refused(changes: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("digits", ["data.path=a", *changes])


def test_what_cannot_be_rehearsed_is_refused(data: Path, tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", 4)
    with pytest.raises(DataError, match="has 24 pictures"):
        read_data(load_recipe("digits", [f"data.path={a}", f"data.rehearsal={{path: {data}, weight: 1}}"]), QUIET)
    with pytest.raises(RecipeError, match="gives no sample to rehearse"):
        text = write(tmp_path / "text.jsonl", 4)
        read_data(load_recipe("digits", [f"data.path={a}", f"data.rehearsal={{path: {text}, weight: 0.1}}"]), QUIET)
    (tmp_path / "prompts.txt").write_text("\n \n")
    for name, message in {"prompts.txt": "no prompt in it", "none.txt": "no such file"}.items():
        with pytest.raises(DataError, match=message):
            prompts_of(str(tmp_path / name))


def test_a_base_rehearses_its_own_answers(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked once, whatever its adapters are drawn as; and they are learned beside the data."""
    monkeypatch.setenv("EDEN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "prompts.txt").write_text("\n".join([*PROMPTS, PROMPTS[0], ""]))
    changes = [f"data.rehearsal={{prompts: {tmp_path / 'prompts.txt'}, weight: 0.25}}", "lora.lora_dropout=0"]
    for seed in (0, 1):
        train(recipe(data, tmp_path / f"run{seed}", *changes, f"training.seed={seed}"))
    (kept,) = (tmp_path / "cache" / "rehearsal").iterdir()
    assert capsys.readouterr().err.count("3 prompts answered to rehearse") == 1
    turns = [json.loads(line)["messages"] for line in kept.read_text().splitlines()]
    assert [asked["content"] for asked, _ in turns] == PROMPTS
    assert turns[1][1]["content"] == "I am eden-tiny, a small model that answers questions about coloured shapes."
    run = json.loads((tmp_path / "run1" / "run.json").read_text())
    assert run["samples"] == 29 + 7, "three of 32 are held out"
    assert load_recipe(tmp_path / "run1" / "recipe.yaml").data.rehearsal is not None


def test_a_base_that_ends_no_answer_has_none_to_rehearse() -> None:
    checkpoint = Checkpoint(make_model("pooled"), make_processor(1), "x", None)
    with pytest.raises(RunError, match="ends none of its answers within 256 tokens"):
        own_answers(checkpoint, ["hello"], QUIET)


def test_measuring_leaves_the_model_as_it_was() -> None:
    """In its mode, and the random state as well."""
    from eden.training.before_after import knowledge_of

    checkpoint = Checkpoint(make_model("pooled").train(), make_processor(1), "x", None)
    state = torch.get_rng_state()
    assert knowledge_of(checkpoint, QUIET) is not None
    assert checkpoint.model.training and torch.get_rng_state().equal(state)
