"""Data files: read exactly, checked in full, and every fault named where it stands."""

import base64
import functools
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cli
import PIL.Image
import pytest
from conftest import make_image

from eden import DataError, Image, Message, Text
from eden.data.formats import RecordError, Sample, read_samples
from eden.data.validate import check, load_samples


@functools.cache
def bomb() -> bytes:
    """A small file of very many pixels, which takes a second to write."""
    file = io.BytesIO()
    PIL.Image.new("1", (20_000, 20_000)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Good and bad images of every kind."""
    make_image("red").save(tmp_path / "red.png")
    make_image("blue").save(tmp_path / "blue.jpg")
    whole = (tmp_path / "red.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "bomb.png").write_bytes(bomb())
    return tmp_path


def llava(*turns: str, image: Any = None, **more: Any) -> dict[str, Any]:
    """A LLaVA record; human and gpt take turns."""
    speakers = ["human", "gpt"] * len(turns)
    record: dict[str, Any] = {
        "id": "7",
        "conversations": [{"from": who, "value": text} for who, text in zip(speakers, turns, strict=False)],
    }
    return record | ({"image": image} if image is not None else {}) | more


def write(folder: Path, *records: Any) -> Path:
    path = folder / "data.json"
    path.write_text(json.dumps(list(records)))
    return path


def only(path: Path) -> Sample:
    (sample,) = read_samples(path)
    assert isinstance(sample, Sample), sample
    return sample


def test_llava_with_several_images_anywhere(folder: Path) -> None:
    path = write(
        folder,
        llava(
            "<image>\nIs <image> like it?",
            "No.",
            "And this?\n<image>",
            "Yes.",
            image=["red.png", "blue.jpg", "red.png"],
        ),
    )
    red, blue = Image(folder / "red.png"), Image(folder / "blue.jpg")
    sample = only(path)
    assert sample.id == "7"
    assert sample.where == f"{path} record 1 (id 7)"
    assert sample.messages == (
        Message("user", (red, Text("Is "), blue, Text(" like it?"))),
        Message("assistant", (Text("No."),)),
        Message("user", (Text("And this?"), red)),
        Message("assistant", (Text("Yes."),)),
    )


def test_llava_text_only_and_system(folder: Path) -> None:
    record = llava("Hello", "Hi")
    record["conversations"].insert(0, {"from": "system", "value": "Be brief."})
    assert only(write(folder, record)).messages == (
        Message.system("Be brief."),
        Message.user("Hello"),
        Message.assistant("Hi"),
    )


def test_messages_with_paths_and_data_urls(folder: Path) -> None:
    buffer = io.BytesIO()
    make_image("red").save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    turns = [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "blue.jpg"}},
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "image", "image": "red.png"},
                {"type": "image", "path": "red.png"},
                {"type": "text", "text": "Compare."},
            ],
        },
        {"role": "assistant", "content": "They differ."},
    ]
    path = folder / "data.jsonl"
    path.write_text(json.dumps({"messages": turns}) + "\n\n" + json.dumps({"id": "b", "messages": turns}) + "\n")
    first, second = read_samples(path)
    assert isinstance(first, Sample) and isinstance(second, Sample)
    assert (first.id, second.id) == ("1", "b")
    assert second.where == f"{path} line 3 (id b)"
    images = (
        Image(folder / "blue.jpg"),
        Image(buffer.getvalue()),
        Image(folder / "red.png"),
        Image(folder / "red.png"),
    )
    assert first.messages == (Message("user", (*images, Text("Compare."))), Message.assistant("They differ."))
    report, good = check(path)
    assert report.ok and len(good) == 2


def test_jsonl_and_json_of_the_same_records_agree(folder: Path) -> None:
    records = [llava("a", "b"), llava("<image>c", "d", image="red.png")]
    as_list = write(folder, *records)
    as_lines = folder / "lines.whatever"
    as_lines.write_text("\n".join(map(json.dumps, records)))
    messages = [[s.messages for s in read_samples(path) if isinstance(s, Sample)] for path in (as_list, as_lines)]
    assert messages[0] == messages[1] and len(messages[0]) == 2


@pytest.mark.parametrize("named", ["000000033471.jpg", "coco/train2017/000000033471.jpg"])
def test_coco_2014_names_are_found(tmp_path: Path, named: str) -> None:
    make_image("red").save(tmp_path / "COCO_train2014_000000033471.jpg")
    sample = only(write(tmp_path, llava("<image>\nq", "a", image=named)))
    assert sample.messages[0].images == (Image(tmp_path / "COCO_train2014_000000033471.jpg"),)


def test_coco_2017_folder_for_a_2014_name(tmp_path: Path) -> None:
    make_image("red").save(tmp_path / "000000033471.jpg")
    sample = only(write(tmp_path, llava("<image>\nq", "a", image="COCO_val2014_000000033471.jpg")))
    assert sample.messages[0].images == (Image(tmp_path / "000000033471.jpg"),)


@pytest.mark.parametrize("given", [0, 100])
def test_an_image_of_another_folder_is_never_taken(tmp_path: Path, given: int) -> None:
    """Neither where names are looked up nor where the folder is listed."""
    for name in ("0.png", "000000000001.jpg", "COCO_val2014_000000000002.jpg"):
        make_image("red").save(tmp_path / name)
    names = ["a/0.png", "vg/VG_100K/0.png", "frames/000000000001.jpg", "coco/train2017/0.png", "000000000002.png"]
    records = [llava("<image>q", "a", image=name, id=name) for name in [*["0.png"] * given, *names]]
    report, good = check(write(tmp_path, *records))
    assert [fault.sample_id for fault in report.faults] == names and len(good) == given
    assert [fault.what for fault in report.faults] == [f"{tmp_path / name}: no such image file" for name in names]


def spoken_by(roles: str) -> dict[str, Any]:
    return {"id": "7", "messages": [{"role": role, "content": "a"} for role in roles.split()]}


OUT_OF_ORDER = {
    "user user assistant": "turn 2: two user turns in a row",
    "user assistant assistant": "turn 3: two assistant turns in a row",
    "system system user assistant": "turn 2: a system turn behind the first turn",
    "user system assistant": "turn 2: a system turn behind the first turn",
    "user assistant system user assistant": "turn 3: a system turn behind the first turn",
    "system assistant": "turn 2: the conversation starts with the assistant",
    "user assistant user": "the last turn is the user's",
    "system user": "the last turn is the user's",
    "user": "the last turn is the user's",
}
"""Who speaks in which order, and what a data set's check says; a server joins such turns (`docs/serving.md`)."""
NOT_LEARNT = {"role": "assistant", "content": "a", "weight": 0}
FAULTS: list[tuple[str, dict[str, Any]]] = [
    ("missing_image", llava("<image>q", "a", image="gone.png")),
    ("damaged_image", llava("<image>q", "a", image="cut.png")),
    ("not_an_image", llava("<image>q", "a", image="text.png")),
    ("image_too_large", llava("<image>q", "a", image="bomb.png")),
    ("image_count", llava("<image><image>q", "a", image="red.png")),
    ("turn_order", {"id": "7", "conversations": [{"from": "gpt", "value": "a"}, {"from": "human", "value": "q"}]}),
    *(("turn_order", spoken_by(roles)) for roles in OUT_OF_ORDER),
    ("empty_answer", llava("q", " \n")),
    ("empty_message", llava("", "a")),
    ("control_token", llava("q", "a<|end|>b")),
    ("control_token", llava("q", "<s>12</s> 9 <unk> x")),
    ("control_token", llava("q", "a</s>")),
    ("control_token", llava("a <unk>", "b")),
    ("control_token", llava("q", "a<|placeholder1|>b")),
    ("empty_answer", llava("q", "\u200b")),
    ("empty_answer", llava("q", "\ufeff \u2060\u00ad\n")),
    ("empty_answer", llava("q", "\u3164")),
    ("empty_message", llava("\u200d", "a")),
    ("empty_answer", {"id": "7", "messages": [{"role": "user", "content": "q"}, NOT_LEARNT]}),
    ("bad_record", {"id": "7", "messages": [{"role": "user", "content": "q"}, NOT_LEARNT | {"weight": 0.5}]}),
    ("bad_record", llava("<image>q", "a", image="a" * 300_000)),
    ("damaged_image", llava("<image>q", "a", image="data:image/png;base64,?")),
    ("bad_record", {"id": "7", "instruction": "q", "output": ["a"]}),
    ("bad_record", {"id": "7", "query": "q", "response": "a", "history": ["q", "a"]}),
    ("unknown_role", {"id": "7", "conversations": [{"from": "narrator", "value": "q"}]}),
    ("unknown_role", {"id": "7", "conversations": [{"from": {}, "value": "q"}]}),
    ("bad_text", llava("q", "a\ud800")),
    ("bad_text", llava("<image>q", "a", image="a\ud800.png")),
    ("missing_image", llava("<image>q", "a", image="pipe.png")),
    ("missing_image", llava("<image>q", "a", image="/dev/zero")),
    ("remote_image", llava("<image>q", "a", image="https://example.com/red.png")),
    ("remote_image", {"id": "7", "file_name": "http://example.com/red.png", "text": "a"}),
    ("bad_record", {"id": "7", "text": "q"}),
    (
        "remote_image",
        {
            "id": "7",
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]},
                {"role": "assistant", "content": "a"},
            ],
        },
    ),
]


@pytest.mark.parametrize(("kind", "record"), FAULTS)
def test_every_fault_is_named_counted_and_skippable(folder: Path, kind: str, record: dict[str, Any]) -> None:
    good = llava("<image>q", "a", image="red.png", id="good")
    path = write(folder, good, record)
    report, samples = check(path, look="decoded")
    (fault,) = report.faults
    assert (fault.kind, fault.sample_id) == (kind, "7")
    assert fault.where == f"{path} record 2 (id 7)"
    assert fault.what and fault.hint and len(fault.what) < 400
    assert (report.samples, report.faulty, [sample.id for sample in samples]) == (2, 1, ["good"])

    with pytest.raises(DataError, match=r"record 2 \(id 7\)") as caught:
        load_samples(path)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2
    kept, _ = load_samples(path, on_error="skip")
    assert [sample.id for sample in kept] == ["good"]


@pytest.mark.parametrize("roles", OUT_OF_ORDER)
def test_the_turn_that_is_out_of_order_is_named(tmp_path: Path, roles: str) -> None:
    (fault,) = check(write(tmp_path, spoken_by(roles)))[0].faults
    assert fault.what == OUT_OF_ORDER[roles]


def test_words_that_are_control_tokens_to_some_models_are_counted_and_no_fault(tmp_path: Path) -> None:
    path, page = write(tmp_path, llava("q", "<think>a</think>"), llava("<think>", "a", id="8")), tmp_path / "page.html"
    result = cli.eden("check", path, "--html", page)
    assert result.returncode == 0, result.stdout
    assert "a control token to some models, <think>: 2\n" in result.stdout and "</think>: 1\n" in result.stdout
    assert "with &lt;think&gt;, a control token to some models" in page.read_text()


@pytest.mark.parametrize("record", [{}, None, 7, {"id": None}])
def test_a_record_without_an_id_gets_none(tmp_path: Path, record: Any) -> None:
    path = write(tmp_path, record)
    report, _ = check(path)
    assert [(fault.where, fault.sample_id) for fault in report.faults] == [(f"{path} record 1", None)]


def test_half_a_character_in_an_id_does_no_harm(tmp_path: Path) -> None:
    report, (sample,) = check(write(tmp_path, llava("q", "a", id="a\ud800")))
    assert report.ok and sample.id == "a?"


def test_more_images_than_placeholders_is_a_fault_too(folder: Path) -> None:
    (error,) = read_samples(write(folder, llava("q", "a", image="red.png")))
    assert isinstance(error, RecordError)
    assert error.fault.what == "the text has 0 <image> and the record 1 image"


@pytest.mark.parametrize("text", ["👍", "7", "…", "é", "\u200bno", "日本"])
def test_an_answer_that_can_be_seen_is_one(tmp_path: Path, text: str) -> None:
    assert check(write(tmp_path, llava("q", text)))[0].ok


@pytest.mark.parametrize("look", ["listed", "opened", "decoded"])
@pytest.mark.parametrize(
    ("there", "named"),
    [
        ("pics/a.jpg", "pics\\a.jpg"),
        ("a.jpg", "A.JPG"),
        ("Pics/a.jpg", "pics/A.jpg"),
        ("caf\u00e9.jpg", "cafe\u0301.jpg"),
        ("cafe\u0301.jpg", "caf\u00e9.jpg"),
        ("a.gif", "a.jpg"),
        ("a.jpeg", "a.jpg"),
        ("a b.jpg", "a%20b.jpg"),
        ("a.jpg", "pics/a.jpg"),
    ],
)
def test_a_name_that_is_nearly_there_is_a_hint(tmp_path: Path, there: str, named: str, look: Any) -> None:
    (tmp_path / there).parent.mkdir(exist_ok=True)
    make_image("red").save(tmp_path / there)
    report, _ = check(write(tmp_path, llava("<image>q", "a", image=named)), look=look)
    (fault,) = report.faults
    assert (fault.kind, fault.hint) == ("missing_image", f"Did you mean {tmp_path / there}?")


def test_a_data_url_is_an_image_wherever_a_name_is(tmp_path: Path) -> None:
    data = io.BytesIO()
    PIL.Image.effect_noise((500, 500), 90).save(data, "PNG")
    url = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    path = write(tmp_path, llava("<image>q", "a", image=url), llava("<image>q", "b", image=[url]))
    assert len(url) > 300_000
    report, found = check(path, look="decoded")
    assert report.ok and [sample.messages[0].images[0].source for sample in found] == [data.getvalue()] * 2
    assert list(found.images().values()) == [data.getvalue()], "what a run's features are made of"


def test_an_empty_image_file_is_a_fault(folder: Path) -> None:
    report, _ = check(write(folder, llava("<image>q", "a", image="empty.png")))
    assert report.faults[0].kind == "not_an_image"


def test_the_closer_one_looks_the_more_is_found(folder: Path) -> None:
    names = ("gone.png", "text.png", "empty.png", "cut.png", "bomb.png", "red.png")
    path = write(folder, *[llava("<image>q", "a", image=name, id=name) for name in names])
    found: dict[str, list[str]] = {}
    for look in ("listed", "opened", "decoded"):
        report, good = check(path, look=look)
        found[look] = [fault.kind for fault in report.faults]
        assert len(good) == len(names) - len(report.faults) == len(names) - report.faulty
        assert good[len(good) - 1].id == "red.png"
    assert found["listed"] == ["missing_image"]
    assert found["opened"] == [*found["listed"], "not_an_image", "not_an_image"]
    assert found["decoded"] == [*found["opened"], "damaged_image", "image_too_large"]


def test_a_shared_broken_image_is_a_fault_of_each_sample(folder: Path) -> None:
    path = write(folder, *[llava("<image>q", "a", image="cut.png", id=str(n)) for n in range(3)])
    report, _ = check(path, look="decoded")
    assert [fault.sample_id for fault in report.faults] == ["0", "1", "2"]


def test_counts(folder: Path) -> None:
    path = write(
        folder,
        llava("<image><image>q", "a", "r", "b", image=["red.png", "blue.jpg"]),
        llava("q", "a"),
    )
    report, _ = check(path)
    assert report.counts == {
        "turns": 6,
        "answers": 3,
        "images": 2,
        "recordings": 0,
        "text_only_samples": 1,
        "samples_with_several_images": 1,
        "repeated_ids": 1,
        "repeated_samples": 0,
    }


def test_truncated_json_names_line_and_column(folder: Path) -> None:
    path = write(folder, llava("q", "a"))
    path.write_text(path.read_text()[:-9])
    with pytest.raises(DataError, match=r"data\.json line 1 column \d+: not valid JSON"):
        list(read_samples(path))


def test_a_truncated_line_is_one_fault(folder: Path) -> None:
    path = folder / "data.jsonl"
    path.write_text(json.dumps(llava("q", "a")) + '\n{"id": "8", "conver')
    report, good = check(path)
    assert [fault.kind for fault in report.faults] == ["bad_json"]
    assert report.faults[0].where == f"{path} line 2"
    assert len(good) == 1


@pytest.mark.parametrize(("content", "message"), [(b"", "empty"), (b"[]", "empty"), (b"\xff\xfe\x00", "UTF-8")])
def test_files_that_are_no_data_sets(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "data.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_samples(path))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such data file"):
        list(read_samples(tmp_path / "gone.json"))
    with pytest.raises(DataError, match="no such folder of images"):
        list(read_samples(tmp_path / "gone.json", tmp_path / "gone"))


def test_skip_with_nothing_left_is_an_error(folder: Path) -> None:
    with pytest.raises(DataError):
        load_samples(write(folder, llava("q", " \n")), on_error="skip")


def test_checking_needs_no_torch() -> None:
    script = "import sys, eden.data.validate, eden.data.formats; print({'torch', 'transformers'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "set()"
