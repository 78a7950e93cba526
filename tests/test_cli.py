"""The command line as a user meets it: another process, its output, its exit code."""

import json
import os
import subprocess
from pathlib import Path

import cli
import numpy as np
import pytest
from conftest import make_image

import eden
from eden.media.audio import SAMPLE_RATE, to_wav
from tiny_build.dataset import write_dataset

EXAMPLES = Path(__file__).parent.parent / "examples"
VERBS = [
    "ask",
    "cache",
    "chat",
    "check",
    "demo",
    "evaluate",
    "export",
    "plan",
    "push",
    "report",
    "train",
    "transcribe",
    "xray",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("world"), 12, seed=1)


def test_help_names_every_verb_and_each_has_its_own() -> None:
    shown = cli.eden("--help").stdout
    assert all(verb in shown for verb in VERBS)
    assert "--json" in cli.eden("train", "--help").stdout
    assert cli.eden("--version").stdout.strip() == eden.__version__


def test_ask_streams_text_and_prints_json(data: Path) -> None:
    image = data.parent / "000000.png"
    plain = cli.eden("ask", "--image", image, "How many objects are there?")
    assert plain.returncode == 0, plain.stderr
    as_json = cli.eden("ask", "--image", image, "How many objects are there?", "--json")
    answer = json.loads(as_json.stdout)
    assert answer["answer"].strip() == plain.stdout.strip() != ""
    assert answer["model"] == "eden-tiny"


def test_chat_remembers_the_picture(data: Path) -> None:
    lines = f"/image {data.parent / '000000.png'}\nHow many objects are there?\n/image gone.png\n/clear\nHello!\n"
    result = cli.eden("chat", said=lines)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.strip().splitlines()) == 2
    assert "gone.png: no such image file" in result.stderr


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One picture and a spoken question about it."""
    return write_dataset(tmp_path_factory.mktemp("spoken"), 1, seed=2, turns=1, spoken=True)


def test_ask_by_voice_prints_what_was_heard_on_stderr(spoken: Path) -> None:
    files = ["--image", spoken.parent / "000000.png", "--audio", spoken.parent / "000000-0.wav"]
    plain = cli.eden("ask", *files)
    assert plain.returncode == 0, plain.stderr
    heard = plain.stderr.strip().removeprefix("heard  ")
    as_json = json.loads(cli.eden("ask", *files, "--json").stdout)
    assert as_json["transcripts"] == [heard] and heard.endswith(("?", "."))
    assert as_json["answer"] == plain.stdout.strip()
    typed = json.loads(cli.eden("ask", *files[:2], heard, "--json").stdout)
    assert typed["answer"] == as_json["answer"] and "transcripts" not in typed


def test_chat_by_voice(spoken: Path) -> None:
    folder = spoken.parent
    result = cli.eden(
        "chat", said=f"/image {folder / '000000.png'}\n/audio {folder / '000000-0.wav'}\n/audio gone.wav\n"
    )
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.strip().splitlines()) == 1
    assert "heard  " in result.stderr and "gone.wav: no such recording" in result.stderr


def test_transcribe_as_text_json_and_subtitles(spoken: Path, tmp_path: Path) -> None:
    recording = spoken.parent / "000000-0.wav"
    text = cli.eden("transcribe", recording)
    assert text.returncode == 0, text.stderr
    assert "peak memory" in text.stderr
    (transcript,) = json.loads(cli.eden("transcribe", recording, "--json").stdout)["transcripts"]
    assert transcript["text"] == text.stdout.strip() and transcript["file"] == str(recording)
    subtitles = cli.eden("transcribe", recording, "--srt").stdout.splitlines()
    assert subtitles[0] == "1" and " --> " in subtitles[1] and subtitles[2] == text.stdout.strip()
    (tmp_path / "silence.wav").write_bytes(to_wav(np.zeros(SAMPLE_RATE, dtype=np.float32)))
    silent = cli.eden("transcribe", tmp_path / "silence.wav")
    assert silent.returncode == 0 and silent.stdout == "" and "silence.wav: no speech was heard" in silent.stderr


def test_xray_of_spoken_samples_shows_the_words(spoken: Path) -> None:
    (sample,) = json.loads(cli.eden("xray", spoken, "-n", "1", "--json").stdout)["samples"]
    heard = cli.eden("transcribe", spoken.parent / "000000-0.wav").stdout.strip()
    assert heard in "".join(token["text"] for token in sample["tokens"])


def test_check_of_a_good_and_a_bad_file(data: Path, tmp_path: Path) -> None:
    good = cli.eden("check", data, "--html", tmp_path / "data.html")
    assert good.returncode == 0, good.stderr
    assert "12 samples, 0 faulty: all good" in good.stdout
    assert "12" in (tmp_path / "data.html").read_text()
    records = json.loads(data.read_text())
    records[4]["image"] = "gone.png"
    records[7]["conversations"][1]["value"] = ""
    bad = data.with_name("bad.json")
    bad.write_text(json.dumps(records))
    result = cli.eden("check", bad)
    assert result.returncode == 2
    assert "record 5 (id 000004)" in result.stdout and "record 8 (id 000007)" in result.stdout
    report = json.loads(cli.eden("check", bad, "--json").stdout)
    assert report["faults_by_kind"] == {"empty_answer": 1, "missing_image": 1}


def test_xray_in_the_terminal_as_json_and_as_a_page(data: Path, tmp_path: Path) -> None:
    result = cli.eden("xray", data, "-n", "2", "--html", tmp_path / "xray.html")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("of them supervised") == 2 and "<|image|> ×36" in result.stdout
    assert "&lt;|image|&gt; ×36" in (tmp_path / "xray.html").read_text()
    (sample,) = json.loads(cli.eden("xray", data, "-n", "1", "--json").stdout)["samples"]
    said = "".join(token["text"] for token in sample["tokens"] if token["supervised"])
    turns = json.loads(data.read_text())[0]["conversations"]
    assert said == "".join(f" {turn['value']}<|end|>" for turn in turns if turn["from"] == "gpt")


def test_evaluate_a_file(data: Path, tmp_path: Path) -> None:
    result = cli.eden("evaluate", "eden-tiny", data, "--limit", "6", "--json", "--html", tmp_path / "result.html")
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    assert summary["n"] == 6 and 0 <= summary["accuracy"] <= 1
    assert "eden-tiny on train" in (tmp_path / "result.html").read_text()


def test_export_gives_a_whole_model(tmp_path: Path) -> None:
    result = cli.eden("export", "eden-tiny", tmp_path / "merged", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {"folder": str(tmp_path / "merged")}
    assert {"model.safetensors", "config.json", "modeling.py"} <= {p.name for p in (tmp_path / "merged").iterdir()}


@pytest.mark.parametrize("printed", ["few lines", "one object", "help"])
def test_a_disk_that_is_full_is_told_and_a_pipe_that_is_closed_is_not(data: Path, printed: str) -> None:
    arguments = {"few lines": ["check", data], "one object": ["check", data, "--json"], "help": ["--help"]}[printed]
    with Path("/dev/full").open("w") as full:
        result = cli.eden(*arguments, stdout=full)
    assert (result.returncode, result.stderr) == (1, FULL)
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        result = cli.eden(*arguments, stdout=closed)
    assert (result.returncode, result.stderr) == (1, "")


FULL = "error the output: the disk is full. Free some space and run the same command again.\n"


def test_names_that_are_no_text_and_look_like_markup(spoken: Path, tmp_path: Path) -> None:
    folder = tmp_path / "[red][" / "bold]"  # ends a tag that nobody began
    folder.mkdir(parents=True)
    picture = folder / os.fsdecode(b"\xff.png")
    make_image("red").save(picture)
    silent = folder / os.fsdecode(b"\xff.wav")
    silent.write_bytes(to_wav(np.zeros(SAMPLE_RATE, dtype=np.float32)))
    heard = cli.eden("transcribe", silent)
    assert heard.returncode == 0 and f"{folder}/\\udcff.wav: no speech was heard\n" in heard.stderr
    records = tmp_path / "records.jsonl"
    turns = [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "Red."}]
    records.write_text(json.dumps({"image": picture.name, "messages": turns}) + "\n")
    checked = cli.eden("check", records, "--images", folder)
    assert checked.returncode == 2 and "\\udcff" in checked.stdout
    for refused in (cli.eden("ask", "half \udcff"), cli.eden("decide", "half \udcff", "--choices", "a,b")):
        assert (refused.returncode, refused.stdout) == (2, "")
        assert refused.stderr.endswith("half a character, \\udcff. Write whole characters, in UTF-8.\n")
    said = f"half \udcff\n/image {picture}x\n/image {picture}\nWhat color is it?\n"
    chat = cli.Python("-m", "eden", "chat", stdin=subprocess.PIPE, errors="surrogateescape").finished(said)
    assert chat.returncode == 0 and len(chat.stdout.splitlines()) == 1
    assert "half a character" in chat.stderr and f"{folder}/\\udcff.pngx: no such image file" in chat.stderr


def test_a_schema_that_cannot_be_read(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    for content, message in ((b"{" * 10**5, "no schema"), (b'{"a":' * 10**5, "no schema"), (b"[]", "no JSON schema")):
        schema.write_bytes(content)
        result = cli.eden("ask", "hello", "--json-schema", schema)
        assert result.returncode == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1
    schema.write_text('{"type": "boolean"}', encoding="utf-8-sig")
    assert cli.eden("ask", "hello", "--json-schema", schema).stdout in ("true\n", "false\n")


GGUF = ["export", "eden-tiny", "x", "--to", "gguf"]
BAD = {
    "no such image": (["ask", "--image", "gone.png", "hi"], "gone.png: no such image file"),
    "no such recording": (["ask", "--audio", "gone.wav"], "gone.wav: no such recording"),
    "no recording": (["transcribe", __file__], "not a recording Eden can read"),
    "no such Whisper": (["transcribe", __file__, "-m", "./gone"], "./gone: no such folder"),
    "two formats": (["transcribe", __file__, "--json", "--srt"], "more than one format"),
    "a language it does not hear": (["transcribe", __file__, "--language", "de"], "does not hear the language"),
    "noise without speech": (["evaluate", "eden-tiny", "world", "--noise-db", "3"], "without --spoken"),
    "no such model": (["ask", "-m", "./gone", "hi"], "no such folder"),
    "an empty question": (["ask", " "], "empty"),
    "no question": (["ask"], "empty"),
    "no such data": (["check", "gone.json"], "no such data file"),
    "no such recipe": (["train", "gone"], "no such recipe"),
    "a wrong key": (["train", "digits", "training.max_step=1"], "Did you mean max_steps?"),
    "no such task": (["evaluate", "eden-tiny", "gone"], "no task and no file"),
    "a task without its file": (["evaluate", "eden-tiny", "vqav2"], "needs its official file"),
    "a task file of another kind": (
        ["evaluate", "eden-tiny", "pope", "--questions", EXAMPLES / "shapes.json"],
        "not a file of pope: found a list of id, image, conversations",
    ),
    "nothing to compare with": (["evaluate", "eden-tiny", "world", "--limit", "1", "--against", "x"], "no result here"),
    "no such export": (["export", "eden-tiny", "x", "--to", "tape"], "cannot export to 'tape'"),
    "outtype without gguf": (["export", "eden-tiny", "x", "--outtype", "q8_0"], "--outtype is for --to gguf only"),
    "4 bits of a Space": (["export", "eden-tiny", "x", "--to", "space", "--4bit"], "--4bit is for --to hf only"),
    "check without gguf": (["export", "eden-tiny", "x", "--check", "."], "--check is for --to gguf only"),
    "a question without check": (["export", "eden-tiny", "x", "--question", "hi"], "--question without --check"),
    "nothing to check": ([*GGUF, "--check", "."], ".: no picture in the folder. Give one"),
    "no such picture": ([*GGUF, "--check", "gone.png"], "gone.png: no such image file"),
    "check without llama.cpp": (
        [*GGUF, "--check", EXAMPLES / "shapes"],
        "--check needs llama.cpp. pip install llama-cpp-python==",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_code_two(name: str, tmp_path: Path) -> None:
    arguments, message = BAD[name]
    result = cli.eden(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    make_image("red").save(tmp_path / "red.png")
    assert "Traceback" in cli.eden("ask", "--image", tmp_path / "gone.png", "hi", "--debug").stderr
