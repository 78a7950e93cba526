"""Every error carries one fault, which can be found again at another place."""

import pickle

import pytest

from eden import errors
from eden.data.records import RecordError
from eden.errors import EdenError, Fault, ImageError
from eden.serve.schema import RequestError

ERRORS = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, EdenError)]


def test_a_fault_reads_as_one_line() -> None:
    assert str(Fault("k", "it is\nbroken")) == "it is broken"
    assert str(Fault("k", "it is broken", "a.png", "Mend it.")) == "a.png: it is broken. Mend it."


def test_at_another_place_the_first_place_is_told_too() -> None:
    fault = Fault("damaged_image", "not an image", "a.png", "Mend it.")
    assert fault.at("data.json record 1", "7") == Fault(
        "damaged_image", "a.png: not an image", "data.json record 1", "Mend it.", "7"
    )
    assert Fault("k", "not an image").at("a.png") == Fault("k", "not an image", "a.png")


@pytest.mark.parametrize("kind", [*ERRORS, RecordError])
def test_an_error_keeps_its_kind_elsewhere_and_in_another_process(kind: type[EdenError]) -> None:
    error = kind("not an image", where="a.png", hint="Mend it.", kind="damaged_image")
    for again in (error.at("data.json"), pickle.loads(pickle.dumps(error)).at("data.json")):
        assert type(again) is kind and again.fault == error.fault.at("data.json")
        assert str(again) == "data.json: a.png: not an image. Mend it."


def test_a_requests_error_is_a_fault_too() -> None:
    fault = RequestError("too long", param="messages[0]", code="context_length_exceeded").fault
    assert fault == Fault("context_length_exceeded", "too long", "messages[0]")
    assert ImageError(fault).fault is fault
