"""Data sets as people have them: COCO captions, image folders, Parquet, turns with images beside them."""

import io
import json
import os
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import make_image

from eden import DataError, Image, Message, Text
from eden.data import json_stream
from eden.data.formats import RecordError, Sample, read_samples
from eden.data.json_stream import JsonStream
from eden.data.records import CAPTION_REQUESTS
from eden.data.validate import check
from eden.messages import to_chat


def samples(path: Path, images: Path | None = None) -> list[Sample]:
    found = list(read_samples(path, images))
    assert all(isinstance(item, Sample) for item in found), found
    return [item for item in found if isinstance(item, Sample)]


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    make_image(colour).save(buffer, "PNG")
    return buffer.getvalue()


def captions(*, images_first: bool) -> str:
    images = [{"id": 5, "file_name": "COCO_val2014_000000000005.jpg"}, {"id": 9, "file_name": "000000000009.jpg"}]
    annotations = [
        {"id": 1, "image_id": 9, "caption": "A cat."},
        {"id": 2, "image_id": 5, "caption": "A dog, barking."},
        {"id": 3, "image_id": 9, "caption": "A cat on a mat."},
    ]
    parts = {"images": images, "annotations": annotations}
    order = ["images", "annotations"] if images_first else ["annotations", "images"]
    return json.dumps({"info": {"year": 2017}, **{name: parts[name] for name in order}, "licenses": []})


@pytest.mark.parametrize("images_first", [True, False])
@pytest.mark.parametrize("folder_of", ["2014", "2017"])
def test_coco_captions_are_asked_for(tmp_path: Path, images_first: bool, folder_of: str) -> None:
    names = {
        "2014": ["COCO_val2014_000000000005.jpg", "COCO_train2014_000000000009.jpg"],
        "2017": ["000000000005.jpg", "000000000009.jpg"],
    }[folder_of]
    for name in names:
        make_image("red").save(tmp_path / name)
    path = tmp_path / "captions.json"
    path.write_text(captions(images_first=images_first))
    found = samples(path)
    assert [sample.id for sample in found] == ["1", "2", "3"]
    assert found[1].where == f"{path} annotation 2 (id 2)"
    assert [sample.messages[1].text for sample in found] == ["A cat.", "A dog, barking.", "A cat on a mat."]
    assert [sample.messages[0].images[0].source for sample in found] == [tmp_path / names[i] for i in (1, 0, 1)]
    assert {sample.messages[0].text for sample in found} <= set(CAPTION_REQUESTS)
    assert samples(path) == found, "the requests are always the same"
    report, good = check(path)
    assert report.ok and len(good) == 3


LAYOUTS: list[tuple[str, dict[str, Any], list[tuple[str, str]]]] = [
    (
        "conversations (role, content)",
        {"conversations": [{"role": "user", "content": "<image>\nq"}, {"role": "assistant", "content": "a"}]},
        [("user", "q"), ("assistant", "a")],
    ),
    (
        "messages (from, value)",
        {"messages": [{"from": "Human", "value": "<image>q"}, {"from": "chatgpt", "value": "a"}]},
        [("user", "q"), ("assistant", "a")],
    ),
    (
        "conversations (from, value)",
        {"conversations": [{"from": "Human", "value": "<image>\nq"}, {"from": "GPT", "value": "a"}], "system": "s"},
        [("system", "s"), ("user", "q"), ("assistant", "a")],
    ),
    ("question, answer", {"question": "q", "answer": "a"}, [("user", "q"), ("assistant", "a")]),
    ("question, answer", {"question": "what <image> is", "answer": "a"}, [("user", "what  is"), ("assistant", "a")]),
    (
        "query, response",
        {"query": "r", "response": "b", "history": [["q", "a"]], "system": "s"},
        [("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")],
    ),
    ("instruction, output", {"instruction": "q", "input": "", "output": "a"}, [("user", "q"), ("assistant", "a")]),
    ("instruction, output", {"instruction": "q", "input": "x", "output": "a"}, [("user", "q\nx"), ("assistant", "a")]),
    ("prompt, completion", {"prompt": "q", "completion": "a"}, [("user", "q"), ("assistant", "a")]),
]


@pytest.mark.parametrize("suffix", ["json", "jsonl", "parquet"])
@pytest.mark.parametrize(("form", "record", "said"), LAYOUTS)
def test_names_that_other_tools_have(
    tmp_path: Path, form: str, record: dict[str, Any], said: list[tuple[str, str]], suffix: str
) -> None:
    """Each with a picture beside the turns, which is the first question's; the report says what was understood."""
    make_image("red").save(tmp_path / "red.png")
    record = {"id": "7", "image": "red.png", **record}
    path = tmp_path / f"data.{suffix}"
    if suffix == "parquet":
        pa.parquet.write_table(pa.Table.from_pylist([record]), path)
    else:
        path.write_text(json.dumps([record] if suffix == "json" else record))
    (sample,) = samples(path)
    assert [(message.role, message.text) for message in sample.messages] == said
    (asked,) = [message for message in sample.messages if message.images]
    assert (asked.role, asked.images) == ("user", (Image(tmp_path / "red.png"),))
    assert check(path)[0].to_dict()["formats"] == {form: 1}


def test_a_question_needs_no_picture(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(
        json.dumps({"instruction": "q", "output": "a"}) + "\n" + json.dumps({"query": "r", "response": "b"})
    )
    assert [sample.messages for sample in samples(path)] == [
        (Message.user(question), Message.assistant(answer)) for question, answer in (("q", "a"), ("r", "b"))
    ]
    assert check(path)[0].formats == {"instruction, output": 1, "query, response": 1}


def test_a_recording_beside_turns_is_the_first_question(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps([{"audio": "7.wav", "query": "", "response": "a"}]))
    (sample,) = samples(path)
    assert [part.source for part in sample.messages[0].audio] == [tmp_path / "7.wav"]


@pytest.mark.parametrize("form", ["messages", "conversations"])
def test_a_turn_of_weight_0_is_marked(tmp_path: Path, form: str) -> None:
    turns = [("user", "q", None), ("assistant", "a", 0), ("user", "r", 0), ("assistant", "b", 1)]
    names = ("role", "content") if form == "messages" else ("from", "value")
    rows = [dict(zip((*names, "weight"), turn, strict=True)) for turn in turns]
    path = tmp_path / "data.json"
    path.write_text(json.dumps([{form: rows}]))
    (sample,) = samples(path)
    assert [message.learnt for message in sample.messages] == [True, False, True, True]
    assert "weight" in to_chat(sample.messages)[1] and "weight" not in to_chat(sample.messages)[3]


def test_a_caption_without_its_image_is_one_fault(tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    annotations = [{"id": 1, "image_id": 7, "caption": "A cat."}, {"id": 2, "image_id": 5}, 3]
    path.write_text(json.dumps({"images": [{"id": 5, "file_name": "5.jpg"}], "annotations": annotations}))
    report, _ = check(path)
    assert report.faults_by_kind == {"bad_record": 3}
    assert [fault.where for fault in report.faults] == [
        f"{path} annotation 1 (id 1)",
        f"{path} annotation 2 (id 2)",
        f"{path} annotation 3",
    ]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_an_image_folder_with_metadata(tmp_path: Path, kind: str) -> None:
    make_image("red").save(tmp_path / "a.png")
    make_image("blue").save(tmp_path / "b.png")
    if kind == "jsonl":
        rows = [
            {"file_name": "a.png", "question": "Which colour,\nplease?", "answer": "Red."},
            {"file_name": "b.png", "text": "All blue."},
        ]
        (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    else:
        text = 'file_name,question,answer,text\na.png,"Which colour,\nplease?",Red.,\nb.png,,,All blue.\n'
        (tmp_path / "metadata.csv").write_text(text)
    first, second = samples(tmp_path)
    assert first.messages == (
        Message("user", (Image(tmp_path / "a.png"), Text("Which colour,\nplease?"))),
        Message.assistant("Red."),
    )
    assert second.messages[0].images == (Image(tmp_path / "b.png"),)
    assert second.messages[1] == Message.assistant("All blue.")
    assert second.where == f"{tmp_path / f'metadata.{kind}'} line {2 if kind == 'jsonl' else 4}"
    assert second.id == ("2" if kind == "jsonl" else "4"), "its place, if it has none of its own"
    assert samples(tmp_path / f"metadata.{kind}") == [first, second]


def test_metadata_that_says_too_little(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("file_name,question\na.png,Why?\n,Why?\n")
    found = list(read_samples(tmp_path))
    assert [item.fault.kind for item in found if isinstance(item, RecordError)] == ["bad_record", "bad_record"]
    report, _ = check(tmp_path)
    assert report.faulty == 2


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('"file_name","text"\n"a.png","Red."\n', "Red."),
        ("file_name;text\na.png;Red, I think.\n", "Red, I think."),
        ("file_name\ttext\r\na.png\tRed.\r\n", "Red."),
        ("\ufeff\nfile_name, text\n\na.png,Red.\n", "Red."),
        ("file_name,question,answer\na.png,What?,Red, blue and green.\n", "the line has 4 cells and the header 3"),
        ("file_name,text\na.png,Red.\na.png,caf\xe9\n".encode("latin-1"), "not UTF-8 (the byte 0xe9)"),
        ("file_name,text\n,Red.\n", "the record names no image"),
        ("image,text\na.png,Red.\n", "the header has no column `file_name`"),
        ("file_name,text,text\na.png,Red,Blue\n", "two columns are named `text`"),
        (f'file_name,text\na.png,"{"x" * 140_000}"\n', "Shorten the cell, or close the quotes before it."),
        ('file_name,text\na.png,"Red.\na.png,Blue\n', "Quote the cell, and close its quotes."),
        ('file_name,text\na.png,Red.\na.png,"Red.\na.png,Blue\n', "metadata.csv line 3: not valid CSV"),
    ],
)
def test_csv_as_programs_write_it(tmp_path: Path, text: str | bytes, found: str) -> None:
    """Read as it is meant or refused in one line; never cut short."""
    make_image("red").save(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    try:
        *_, last = read_samples(tmp_path)
    except DataError as error:
        last = error
    assert found in (str(last) if isinstance(last, DataError) else last.messages[1].text)
    assert not isinstance(last, DataError) or re.match(rf"{tmp_path / 'metadata.csv'} line \d+: ", str(last))


@pytest.mark.parametrize("kind", ["list", "lines", "captions"])
def test_a_byte_that_is_not_utf8_is_one_fault(tmp_path: Path, kind: str) -> None:
    """Not the whole file's."""
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "caf\xe9"}]
    records = [{"id": str(index), "conversations": turns} for index in range(3)]
    text = {
        "list": lambda: json.dumps(records, ensure_ascii=False, indent=1),
        "lines": lambda: "\n".join(json.dumps(record, ensure_ascii=False) for record in records),
        "captions": lambda: captions(images_first=False).replace("A ", "caf\xe9 "),
    }[kind]()
    whole, path = text.encode(), tmp_path / "d.json"
    at = whole.rindex("\xe9".encode())
    path.write_bytes(whole[:at] + b"\xe9" + whole[at + 2 :])
    first, second, third = read_samples(path)
    assert isinstance(first, Sample) and isinstance(second, Sample)
    assert isinstance(third, RecordError) and third.fault.kind == "bad_json"
    unit = {"list": "record", "lines": "line", "captions": "annotation"}[kind]
    assert str(third).startswith(f"{path} {unit} 3: not UTF-8 (the byte 0xe9).")
    report, _ = check(path, look="listed")
    assert report.faults_by_kind["bad_json"] == 1 and report.samples == 3


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    pa.parquet.write_table(pa.Table.from_pylist(rows), path)


def test_a_folder_of_parquet_with_images_inside(tmp_path: Path) -> None:
    red, blue = png("red"), png("blue")
    folder = tmp_path / "set"
    pair = {"user": "Which colours?", "assistant": "Red and blue.", "source": "x"}
    more = {"user": "Sure?", "assistant": "Yes.", "source": "x"}
    write_parquet(
        folder / "0.parquet",
        [
            {"images": [{"bytes": red, "path": ""}, {"bytes": blue, "path": ""}], "texts": [pair, more]},
            {"images": [{"bytes": blue[:60], "path": ""}], "texts": [more]},
        ],
    )
    write_parquet(folder / "1.parquet", [{"images": [{"bytes": None, "path": "c.png"}], "texts": [more]}])
    make_image("lime").save(folder / "c.png")
    first, second, third = samples(folder)
    assert first.messages == (
        Message("user", (Image(red), Image(blue), Text("Which colours?"))),
        Message.assistant("Red and blue."),
        Message.user("Sure?"),
        Message.assistant("Yes."),
    )
    assert second.where == f"{folder} row 2"
    assert third.messages[0].images == (Image(folder / "c.png"),)
    report, good = check(folder, look="decoded")
    assert report.faults_by_kind == {"damaged_image": 1} and report.counts["images"] == 4
    assert [sample.messages for sample in good] == [first.messages, third.messages], "from the cache, too"


def test_parquet_with_llava_turns_and_with_messages(tmp_path: Path) -> None:
    red = png("red")
    turns = [{"from": "human", "value": "<image>\nWhich?"}, {"from": "gpt", "value": "Red."}]
    parts = [{"type": "text", "text": "Which?"}, {"type": "image", "text": None}]
    chat = [{"role": "user", "content": parts}, {"role": "assistant", "content": [{"type": "text", "text": "Red."}]}]
    write_parquet(tmp_path / "llava.parquet", [{"id": "7", "image": {"bytes": red}, "conversations": turns}])
    write_parquet(tmp_path / "chat.parquet", [{"id": "8", "images": [{"bytes": red}], "messages": chat}])
    (llava,) = samples(tmp_path / "llava.parquet")
    assert llava.id == "7"
    assert llava.messages == (Message("user", (Image(red), Text("Which?"))), Message.assistant("Red."))
    (chatted,) = samples(tmp_path / "chat.parquet")
    assert chatted.messages == (Message("user", (Text("Which?"), Image(red))), Message.assistant("Red."))


def test_parquet_of_images_with_a_question_or_a_caption(tmp_path: Path) -> None:
    red = png("red")
    asked = {"id": datetime(2024, 5, 1), "image": {"bytes": red}, "question": "Which?", "answer": "Red."}
    write_parquet(tmp_path / "asked.parquet", [asked])
    write_parquet(tmp_path / "told.parquet", [{"image": {"bytes": red}, "text": "All red."}])
    write_parquet(tmp_path / "none.parquet", [{"image": {"bytes": b""}, "text": "All red."}])
    ((found,), (told,)) = (samples(tmp_path / f"{name}.parquet") for name in ("asked", "told"))
    assert found.id == "2024-05-01 00:00:00", "an id may be a date"
    assert found.messages == (Message("user", (Image(red), Text("Which?"))), Message.assistant("Red."))
    assert told.messages[0].images == (Image(red),) and told.messages[0].text in CAPTION_REQUESTS
    assert told.messages[1] == Message.assistant("All red.")
    assert check(tmp_path / "asked.parquet")[1][0] == found, "from the cache, too"
    assert check(tmp_path / "none.parquet")[0].faults_by_kind == {"not_an_image": 1}


def test_parquet_files_that_do_not_fit_together(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    row = {"id": "7", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    table = pa.Table.from_pylist([row])
    pa.parquet.write_table(table, tmp_path / "0.parquet")
    pa.parquet.write_table(table.slice(0, 0), tmp_path / "1.parquet")
    assert len(samples(tmp_path)) == 1, "a file without a row does no harm"
    write_parquet(tmp_path / "2.parquet", [{"label": 7}])
    with pytest.raises(DataError, match=r"2\.parquet: its column `id` is not as in .*0\.parquet"):
        samples(tmp_path)
    (tmp_path / "2.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match=r"2\.parquet: cannot be read"):
        samples(tmp_path)
    with pytest.raises(DataError, match=r"1\.parquet: the data set is empty"):
        samples(tmp_path / "1.parquet")
    assert capfd.readouterr().err == "", "what `datasets` logs is in the error"


@pytest.mark.parametrize(
    ("content", "kind"),
    [("<image>\nWhich?", None), ("Which?", None), ("<image><image>Which?", "image_count")],
)
def test_messages_with_images_beside_them(tmp_path: Path, content: str, kind: str | None) -> None:
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "Red."}]
    (tmp_path / "d.jsonl").write_text(json.dumps({"images": ["a.png"], "messages": turns}))
    (found,) = read_samples(tmp_path / "d.jsonl")
    if kind is None:
        assert isinstance(found, Sample)
        assert found.messages[0] == Message("user", (Image(tmp_path / "a.png"), Text("Which?")))
    else:
        assert isinstance(found, RecordError) and found.fault.kind == kind


def test_an_image_marked_as_embedded_where_none_is(tmp_path: Path) -> None:
    record = {"image": {"embedded": 0}, "conversations": [{"from": "human", "value": "<image>"}]}
    (tmp_path / "d.jsonl").write_text(json.dumps(record))
    (found,) = read_samples(tmp_path / "d.jsonl")
    assert isinstance(found, RecordError) and found.fault.kind == "bad_record"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda place: place.mkdir(), "the folder is no data set"),
        (os.mkfifo, "not a file"),
        (lambda place: place.write_bytes(b"PAR1 and then nothing"), "cannot be read"),
        (lambda place: place.write_text('{"images": [{"id": 1}], "annotations": [{"id": 1'), "not valid JSON"),
        (lambda place: place.write_text('[{"a": 1}] and more'), "more text behind the end"),
        (lambda place: place.write_text('[{"a": 1} {"a": 2}]'), "expected `,` or `]`"),
        (lambda place: place.write_text(f'[{{"id": {"9" * 5000}}}]'), "a number of too many digits"),
    ],
)
def test_what_is_no_data_set_is_refused_in_one_line(tmp_path: Path, make: Any, message: str) -> None:
    place = tmp_path / "data"
    make(place)
    with pytest.raises(DataError, match=message) as caught:
        check(place)
    assert "\n" not in str(caught.value) and str(place) in str(caught.value)


VALUES = [1, -2.5e10, 'a\\"b\u00e9\U0001f600', [], {}, [[1, [2]], {"k": [None, True, False]}], "x" * 50, 12345678901234]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 10_000])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_is_read_the_same_in_pieces_of_any_size(
    chunk: int, indent: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    text = json.dumps(VALUES, indent=indent)
    stream = JsonStream(io.StringIO(text), "x")
    found = list(stream.items())
    stream.end()
    assert [value for value, _ in found] == VALUES
    assert [json.loads(part) for _, part in found] == VALUES


@pytest.mark.parametrize("chunk", [1, 5, 10_000])
@pytest.mark.parametrize(
    "text", ['[1,\n {"a": nope}]', '[{"a":\n\n 1, }]', '["ab\ncd"]', '[1, "open', '[{"a": 1', "[1,\n\n"]
)
def test_an_error_stands_where_pythons_json_says(chunk: int, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    with pytest.raises(json.JSONDecodeError) as expected:
        json.loads(text)
    with pytest.raises(DataError) as caught:
        list(JsonStream(io.StringIO(text), "x").items())
    assert caught.value.fault.where == f"x line {expected.value.lineno} column {expected.value.colno}"
