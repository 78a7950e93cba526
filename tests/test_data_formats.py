"""Data sets as people have them: COCO captions, image folders, Parquet, turns with images beside them."""

import io
import json
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


def test_a_caption_without_its_image_is_one_fault(tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    annotations = [{"id": 1, "image_id": 7, "caption": "A cat."}, {"id": 2, "image_id": 5}, 3]
    path.write_text(json.dumps({"images": [{"id": 5, "file_name": "5.jpg"}], "annotations": annotations}))
    report, _ = check(path)
    assert report.faults_by_kind == {"bad_record": 3}
    assert [fault.where for fault in report.faults] == [
        f"{path} annotation 1 (id 1)",
        f"{path} annotation 2 (id 2)",
        f"{path} annotation 3 (id 3)",
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
    assert second.where == f"{tmp_path / f'metadata.{kind}'} line {2 if kind == 'jsonl' else 4} (id {second.id})"
    assert samples(tmp_path / f"metadata.{kind}") == [first, second]


def test_metadata_that_says_too_little(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("file_name,question\na.png,Why?\n,Why?\n")
    found = list(read_samples(tmp_path))
    assert [item.kind for item in found if isinstance(item, RecordError)] == ["bad_record", "bad_record"]
    report, _ = check(tmp_path)
    assert report.faulty == 2


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
    assert second.where == f"{folder} row 2 (id 2)"
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
        assert isinstance(found, RecordError) and found.kind == kind


def test_an_image_marked_as_embedded_where_none_is(tmp_path: Path) -> None:
    record = {"image": {"embedded": 0}, "conversations": [{"from": "human", "value": "<image>"}]}
    (tmp_path / "d.jsonl").write_text(json.dumps(record))
    (found,) = read_samples(tmp_path / "d.jsonl")
    assert isinstance(found, RecordError) and found.kind == "bad_record"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda place: place.mkdir(), "the folder is no data set"),
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
    assert caught.value.where == f"x line {expected.value.lineno} column {expected.value.colno}"
