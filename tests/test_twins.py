"""Pictures that are alike across the parts of a data set, or with different answers."""

import json
from pathlib import Path

import PIL.Image
import pytest
import torch
from conftest import make_image
from typer.testing import CliRunner, Result

from eden.cli.main import app
from eden.data.twins import PARTS, Picture, nearest, pairs_of
from eden.tiny.world import scenes


def fill(folder: Path, first: int, **numbers: int) -> int:
    """Puts different scenes into class folders; the number of the next one."""
    pictures = [picture for _, (_, picture) in zip(range(60), scenes(seed=0, split="train"), strict=False)]
    for name, number in numbers.items():
        (folder / name).mkdir(parents=True)
        for _ in range(number):
            pictures[first].save(folder / name / f"{first}.png")
            first += 1
    return first


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with `train/` and `test/`, and no two pictures alike."""
    folder = tmp_path_factory.mktemp("photos")
    fill(folder / "test", fill(folder / "train", 0, ok=12, cracked=12), ok=4, cracked=4)
    return folder


def check(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["check", *map(str, arguments)])


def copied(photos: Path, folder: Path) -> Path:
    for path in photos.rglob("*.png"):
        to = folder / path.relative_to(photos)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(path.read_bytes())
    return folder


def test_different_pictures_are_no_twins(photos: Path) -> None:
    found = json.loads(check(photos, "--twins", "--json").stdout)["twins"]
    none = {"leaks": 0, "different_answers": 0, "pairs": [], "unreadable": []}
    assert found == {"threshold": 0.98, "pictures": 32, **none}
    assert json.loads(check(photos, "--json").stdout)["twins"] is None


def test_leaks_and_twins_with_different_answers_are_listed(photos: Path, tmp_path: Path) -> None:
    """A copy in `test/`, and a JPEG of another size in another class; a picture that is damaged is named."""
    folder = copied(photos, tmp_path / "photos")
    (folder / "test/ok/copy.png").write_bytes((folder / "train/ok/3.png").read_bytes())
    picture = PIL.Image.open(folder / "train/ok/5.png").convert("RGB")
    picture.resize((picture.width * 3 // 4, picture.height * 3 // 4)).save(folder / "train/cracked/again.jpg")
    damaged = folder / "train/ok/7.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    result = check(folder, "--twins", "--json", "--html", tmp_path / "page.html")
    assert result.exit_code == 0
    found = json.loads(result.stdout)["twins"]
    assert found["pictures"] == 33 and len(found["unreadable"]) == 1 and str(damaged) in found["unreadable"][0]
    leak, twin = found["pairs"]
    assert leak["same"] and leak["leak"] and not leak["different_answers"] and leak["similarity"] == 1
    assert [Path(of["name"]).name for of in leak["pictures"]] == ["3.png", "copy.png"]
    assert [of["answers"] for of in leak["pictures"]] == [["ok"], ["ok"]] and leak["pictures"][1]["part"] == "test"
    assert not twin["same"] and twin["different_answers"] and 0.98 <= twin["similarity"] < 1
    assert {(Path(of["name"]).name, *of["answers"]) for of in twin["pictures"]} == {
        ("5.png", "ok"),
        ("again.jpg", "cracked"),
    }
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/png") == 4 and all(of["name"] in page for of in twin["pictures"])
    lines = check(folder, "--twins").stdout.splitlines()
    assert f"twins, leaks: {found['leaks']}, different answers: 1" in lines
    assert any(line.startswith("  same    leak ") and "copy.png (test, ok)" in line for line in lines)


def test_one_picture_with_two_answers(tmp_path: Path) -> None:
    """To one question; a picture has another answer to another question, and a caption is none."""
    make_image("red").save(tmp_path / "0.png")
    make_image("blue", (40, 64)).save(tmp_path / "1.png")
    rows = ["0.png,is it red,yes", "0.png,is it red,Yes.", "0.png,is it red,no", "0.png,is it blue,no"]
    rows += ["1.png,is it red,no", "1.png,describe it,a picture", "1.png,describe it,all blue"]
    (tmp_path / "data.csv").write_text("\n".join(["file_name,question,answer", *rows]) + "\n")
    (pair,) = json.loads(check(tmp_path / "data.csv", "--twins", "--json").stdout)["twins"]["pairs"]
    assert pair["same"] and not pair["leak"] and pair["question"] == "is it red"
    assert [(Path(of["name"]).name, of["answers"]) for of in pair["pictures"]] == [("0.png", ["yes", "no"])] * 2


def test_a_data_set_about_one_picture_has_no_parts(tmp_path: Path) -> None:
    make_image("red").save(tmp_path / "0.png")
    (tmp_path / "data.csv").write_text("file_name,question,answer\n0.png,is it red,yes\n0.png,is it red,no\n")
    found = json.loads(check(tmp_path / "data.csv", "--twins", "--json").stdout)["twins"]
    assert (found["leaks"], found["different_answers"]) == (0, 1)


def test_a_picture_in_two_parts_is_a_leak() -> None:
    pictures = [Picture("0.png", part, "record 1") for part in PARTS[:2]]
    (pair,) = pairs_of(pictures, torch.ones(2, 3), [b"key"] * 2)
    assert pair.leak and pair.same and pair.differ_on is None


def test_blocks_give_what_all_at_once_gives() -> None:
    torch.manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(50, 6), dim=1)
    groups, asked = torch.randint(3, (50,)), torch.randperm(50)[:41]
    alike = features @ features.T
    alike[groups[:, None] == groups] = -torch.inf
    values, places = nearest(features, groups, asked, block=7)
    torch.testing.assert_close(values, alike.max(dim=1).values[asked])
    assert torch.equal(places, alike.argmax(dim=1)[asked])
    assert nearest(features, torch.zeros(50), asked)[0].isneginf().all()
