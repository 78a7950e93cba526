"""Temperatures against values worked out by hand, measures against scikit-learn, the file beside the model."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from conftest import make_image, make_model, make_processor
from sklearn.metrics import log_loss

import eden
from eden import CheckpointError
from eden.checkpoint import Checkpoint, load, merge, save
from eden.checkpoint.backbones import LoadOptions
from eden.checkpoint.calibration import CALIBRATION, Calibration, Fitted
from eden.core.answers import AnswerSet
from eden.evaluate.calibration import Calibrated, risk_coverage
from eden.inference.assistant import Assistant
from eden.inference.calibration import LEAST_SAMPLES, fit, fit_temperature, nll, threshold
from eden.inference.decisions import Decision

TWO = AnswerSet.of(["a", "b"])


def sure(probability: float, of: AnswerSet = TWO) -> Decision:
    """A decision for `a`."""
    return Decision.of(of, [math.log(probability), math.log(1 - probability)])


def test_a_model_that_is_too_sure_gets_the_temperature_that_makes_it_right() -> None:
    """It says e^4 to 1 and is right three times of four: at T = 4 / ln 3 it says three to one."""
    scores, truth = np.tile([4.0, 0.0], (4000, 1)), np.array([0, 0, 0, 1] * 1000)
    assert fit_temperature(scores, truth) == pytest.approx(4 / math.log(3), rel=0.01)
    assert fit_temperature(scores / 8, truth) == pytest.approx(0.5 / math.log(3), rel=0.01)


def test_all_right_and_certain_does_not_send_the_temperature_to_zero() -> None:
    scores = np.tile([30.0, 0.0], (50, 1))
    assert fit_temperature(scores, np.zeros(50, dtype=np.int64)) == pytest.approx(1.0, abs=0.01)


def test_each_kind_and_number_of_answers_has_its_own_and_few_samples_have_none() -> None:
    three = AnswerSet.of(levels=["a", "b", "c"])
    answers = [TWO] * 40 + [three] * 40 + [AnswerSet.of()] * (LEAST_SAMPLES - 1)
    logs = [[0.0, -4.0]] * 40 + [[0.0, -1.0, -1.0]] * 40 + [[0.0, -4.0]] * (LEAST_SAMPLES - 1)
    truth = [0, 0, 0, 1] * 10 + [0] * 40 + [0] * (LEAST_SAMPLES - 1)
    found = fit(answers, logs, truth)
    assert set(found) == {"choice 2", "score 3"}
    assert found["choice 2"].temperature > 2 and found["score 3"].temperature < 0.5
    assert found["choice 2"].samples == 40
    lines = Calibration(found).lines(answers)
    assert "not calibrated for yes or no: 29 held-out samples, 30 are needed" in lines
    assert all("few" in line for line in lines if line.startswith("calibrated"))


def test_measures_are_those_of_scikit_learn_and_of_the_definitions() -> None:
    rng = np.random.default_rng(0)
    names = ["a", "b", "c"]
    logs = rng.normal(size=(200, 3)) * 2
    truth = [names[place] for place in rng.integers(3, size=200)]
    decisions = [Decision.of(AnswerSet.of(names), row.tolist()) for row in logs]
    rows = np.array([list(decision.probabilities.values()) for decision in decisions])
    found = {name: value for name, (value, _) in Calibrated(decisions, truth).measures().items()}
    assert found["nll"] == pytest.approx(log_loss(truth, rows, labels=names))
    places = np.array([names.index(text) for text in truth])
    assert found["nll"] == pytest.approx(nll(logs, places).mean())
    assert found["accuracy"] == pytest.approx((rows.argmax(1) == places).mean())
    assert found["brier"] == pytest.approx(((rows - np.eye(3)[places]) ** 2).sum(1).mean())
    top, right = rows.max(1), rows.argmax(1) == places
    bins = np.minimum(14, (top * 15).astype(int))
    gaps = [abs(top[bins == number].sum() - right[bins == number].sum()) for number in range(15)]
    assert found["ece"] == pytest.approx(sum(gaps) / 200)
    for name, (value, (low, high)) in Calibrated(decisions, truth).measures().items():
        assert low < high and (name == "ece" or low <= value <= high)


def test_probabilities_that_are_right_have_the_ece_of_chance() -> None:
    rng = np.random.default_rng(1)
    names = ["yes", "no"]
    logs = rng.normal(size=(300, 2)) * 2
    decisions = [Decision.of(AnswerSet.of(names), row.tolist()) for row in logs]
    drawn = [
        Calibrated(decisions, [rng.choice(names, p=list(of.probabilities.values())) for of in decisions])
        for _ in range(60)
    ]
    mean = np.mean([of.measures()["ece"][0] for of in drawn])
    assert drawn[0].ece_by_chance() == pytest.approx(mean, rel=0.1)
    few = Calibrated(decisions[:30], drawn[0].truth[:30])
    assert few.ece_by_chance() > 2 * drawn[0].ece_by_chance(), "few questions have a large one by chance"


def test_the_threshold_answers_as_many_as_may_be() -> None:
    probabilities = np.array([0.99, 0.9, 0.8, 0.8, 0.7, 0.6])
    right = np.array([True, True, True, False, True, False])
    assert threshold(probabilities, right, 0.0) == 0.9  # at 0.8 one of two is wrong, and they come together
    assert threshold(probabilities, right, 0.2) == 0.7
    assert threshold(probabilities, right, 0.25) == 0.7
    assert threshold(probabilities, right, 1.0) == 0.6
    assert threshold(probabilities, ~right, 0.1) is None
    found = Calibrated([sure(p) for p in probabilities], ["a" if good else "b" for good in right])
    assert found.coverage(0.7) == (pytest.approx(5 / 6), pytest.approx(1 / 5))
    assert [row["coverage"] for row in risk_coverage(found)] == [pytest.approx(2 / 6, abs=1e-4)] * 5


def test_the_plots_of_a_page_are_counted_by_hand() -> None:
    """Fifteen bins: 0.95 and 0.96 share the last, 0.62 and 0.64 another; equal probabilities are answered together."""
    probabilities, right = [0.96, 0.95, 0.8, 0.8, 0.64, 0.62], [True, False, True, False, True, True]
    found = Calibrated([sure(p) for p in probabilities], ["a" if good else "b" for good in right])
    assert found.reliability() == [
        {"n": 2, "probability": 0.63, "right": 1.0},
        {"n": 2, "probability": 0.8, "right": 0.5},
        {"n": 2, "probability": 0.955, "right": 0.5},
    ]
    assert found.curve() == [(0.1667, 0.0), (0.3333, 0.5), (0.6667, 0.5), (0.8333, 0.4), (1.0, 0.3333)]
    many = Calibrated([sure(p) for p in np.linspace(0.5, 0.99, 5000)], ["a"] * 5000)
    assert len(many.curve()) == 200 and many.curve()[0] == (0.0002, 0.0) and many.curve()[-1] == (1.0, 0.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole model with a calibration."""
    model = make_model("patches")
    checkpoint = Checkpoint(model, make_processor(model.config.num_image_tokens), "random", None)
    save(checkpoint, tmp_path / "model")
    questions = {"which": AnswerSet.of(["hex", "b"])}
    Calibration({"choice 2": Fitted(3.0, 50, 0.999999, 0.01)}, questions).write(tmp_path / "model")
    return tmp_path / "model"


def test_an_artifact_keeps_its_temperature_and_every_decision_has_it(folder: Path) -> None:
    assistant, picture = eden.load(str(folder), dtype="float32"), make_image("red")
    messages = [eden.Message.user("which", [picture])]
    (logs,) = assistant.score_answers([messages], [TWO])
    found = assistant.decide("which", [picture], choices=["a", "b"])
    expected = np.exp(np.array(logs) / 3)
    assert list(found.probabilities.values()) == pytest.approx((expected / expected.sum()).tolist())
    assert found.calibrated and found.refused == (found.probability < 0.999999)
    other = assistant.decide("which", [picture], choices=["a", "b", "c"])
    assert not other.calibrated and not other.refused
    assert load(str(folder)).calibration == load(str(folder), LoadOptions(dtype="float32")).calibration
    moved = save(merge(load(str(folder))), folder.parent / "moved")
    assert Calibration.read(moved) == Calibration.read(folder)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"model": "0123456789abcdef"}, "the calibration of another model"),
        ({"fitted": {"choice 2": {"temperature": 0, "samples": 50}}}, "a temperature is not above 0"),
        ({"fitted": 3}, "no calibration"),
        ({"questions": {"which": {"kind": "choice", "answers": ["a"]}}}, "1 choices"),
    ],
)
def test_a_file_of_another_model_or_a_damaged_one_is_refused(
    folder: Path, change: dict[str, object], what: str
) -> None:
    path = folder / CALIBRATION
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=what) as found:
        load(str(folder))
    assert str(path) in str(found.value) and "\n" not in str(found.value)


def test_a_calibration_of_other_weights_is_of_another_model(folder: Path) -> None:
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-64:] = bytes(64)
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match="another model"):
        load(str(folder))


def test_a_model_without_one_is_not_calibrated() -> None:
    model = make_model("pooled")
    assistant = Assistant(Checkpoint(model, make_processor(model.config.num_image_tokens), "random", None))
    assert not assistant.decide("which", choices=["a", "b"]).calibrated
