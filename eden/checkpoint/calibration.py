"""How sure a model may be of its decisions: temperatures and thresholds fitted on held-out samples, kept beside it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..core.answers import AnswerSet, in_words
from ..core.files import write_file
from ..errors import CheckpointError, InputError, first_line

CALIBRATION = "calibration.json"
LEAST_SAMPLES = 30
"""Held-out samples, below which no temperature is fitted: it would be chance."""
FEW_SAMPLES = 200
"""Below, the intervals of what is measured on them are wide, which is said."""
SAMPLED, PIECE = 1024, 64
"""Places of a file of weights, and the bytes at each, that it is known by."""


@dataclass(frozen=True)
class Fitted:
    """What was fitted for a kind of question and a number of answers.

    Attributes:
        temperature: what logarithmic probabilities are divided by.
        samples: held-out ones that it was fitted on.
        threshold: an answer less likely is refused; None refuses none.
        max_error: the share of wrong answers that the threshold was chosen for.
    """

    temperature: float
    samples: int
    threshold: float | None = None
    max_error: float | None = None


@dataclass(frozen=True)
class Calibration:
    """What a model's folder knows of its decisions.

    Attributes:
        fitted: by `AnswerSet.key`.
        questions: those that it was trained to decide, with their answers.
    """

    fitted: Mapping[str, Fitted] = field(default_factory=dict)
    questions: Mapping[str, AnswerSet] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Calibration | None:
        """Of a model's folder; None if it has none.

        Raises:
            CheckpointError: the file is damaged, or of another model.
        """
        path = folder / CALIBRATION
        if not path.exists():
            return None
        hint = "Delete the file; `eden evaluate MODEL DATA --calibrate` makes a new one."
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            model = found["model"]
            calibration = cls(
                {key: Fitted(**values) for key, values in found["fitted"].items()},
                {text: AnswerSet(of["kind"], tuple(of["answers"])) for text, of in found["questions"].items()},
            )
            if any(not values.temperature > 0 for values in calibration.fitted.values()):
                raise ValueError("a temperature is not above 0")
        except (OSError, ValueError, TypeError, KeyError, AttributeError, InputError) as error:
            raise CheckpointError(f"no calibration ({first_line(error)})", where=str(path), hint=hint) from error
        if model != fingerprint(folder):
            raise CheckpointError("the calibration of another model", where=str(path), hint=hint)
        return calibration

    def lines(self, held_out: Iterable[AnswerSet]) -> list[str]:
        """What was fitted, and for what there were too few samples, for people.

        Args:
            held_out: the answers of each sample that there was.
        """
        found = []
        for key, number in Counter(answers.key for answers in held_out).items():
            what = in_words(key)
            if key not in self.fitted:
                found.append(f"not calibrated for {what}: {number} held-out samples, {LEAST_SAMPLES} are needed")
            else:
                few = "; few: its error is wide" if number < FEW_SAMPLES else ""
                temperature = self.fitted[key].temperature
                found.append(
                    f"calibrated for {what}: temperature {temperature:.2f} from {number} held-out samples{few}"
                )
        return found or ["not calibrated: no held-out sample is a decision"]

    def facts(self) -> dict[str, str]:
        """The same of what was fitted, for a report."""
        found = {
            f"decisions, {in_words(key)}": f"temperature {of.temperature:.2f}, from {of.samples} held-out samples"
            for key, of in self.fitted.items()
        }
        return found or {"decisions": "not calibrated: too few held-out samples"}

    def write(self, folder: Path) -> Path:
        """Keeps it in a model's folder, for the weights that are there.

        Raises:
            StorageError: the disk is full or the folder is not writable.
        """
        found = {
            "model": fingerprint(folder),
            "fitted": {key: asdict(values) for key, values in self.fitted.items()},
            "questions": {text: answers.to_dict() for text, answers in self.questions.items()},
        }
        return write_file(folder / CALIBRATION, json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def fingerprint(folder: Path) -> str:
    """A model by its files of weights, in whatever number format they are loaded: sizes, and bytes all over them."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for place in range(SAMPLED + 1):  # the last bytes among them
                file.seek(place * max(0, size - PIECE) // SAMPLED)
                digest.update(file.read(PIECE))
    return digest.hexdigest()[:16]
