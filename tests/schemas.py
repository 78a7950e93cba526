"""Random JSON schemas whose answers are short."""

from __future__ import annotations

import random
from typing import Any

WORDS = ("colour", "shape", "größe", "how many", "is_left", 'a "b"', "線")


def random_schema(draw: random.Random) -> dict[str, Any]:
    """A schema of what is supported, nested at most three deep; a value has some hundred characters at most."""
    return _any(draw, 3) | {"$defs": {"shared": _any(draw, 0)}}


def _any(draw: random.Random, depth: int) -> dict[str, Any]:
    kinds = [_string, _number, _enum, _const, _plain, _reference][: 6 if depth else 5]
    if depth:
        kinds += [_object, _object, _object, _array, _either, _all_of]
    return draw.choice(kinds)(draw, depth - 1)


def _object(draw: random.Random, depth: int) -> dict[str, Any]:
    names = draw.sample(WORDS, draw.randint(1, 3))
    required = [name for name in names if draw.random() < 0.7]
    members = {name: _any(draw, depth) for name in names}
    return {"type": "object", "properties": members, "required": required, "additionalProperties": False}


def _array(draw: random.Random, depth: int) -> dict[str, Any]:
    least = draw.randint(0, 2)
    bounds = {"minItems": least, "maxItems": draw.randint(least, 3)}
    if draw.random() < 0.3:
        return {"type": "array", "prefixItems": [_any(draw, depth)], "items": {"type": "null"}, **bounds}
    return {"type": "array", "items": _any(draw, depth), **bounds}


def _string(draw: random.Random, depth: int) -> dict[str, Any]:
    least = draw.randint(0, 3)
    return draw.choice(
        [
            {"type": "string", "minLength": least, "maxLength": draw.randint(least, 8)},
            {"type": "string", "pattern": draw.choice(["^[a-z]{2,6}$", "^(red|blue) [0-9]{1,3}$", "^[A-Z][a-z]?$"])},
            {"type": "string", "format": draw.choice(["date", "ipv4", "uuid"])},
            {"type": ["string", "null"], "maxLength": 4},
        ]
    )


def _number(draw: random.Random, depth: int) -> dict[str, Any]:
    low = draw.randint(-1000, 1000)
    high = low + draw.randint(0, 500)
    return draw.choice(
        [
            {"type": "integer", "minimum": low, "maximum": high},
            {"type": "integer", "exclusiveMinimum": low, "maximum": high + 1},
            {"type": "integer", "minimum": low, "maximum": high + 7, "multipleOf": 7},
        ]
    )


def _enum(draw: random.Random, depth: int) -> dict[str, Any]:
    return {"enum": draw.sample(["red", "blue", "ü", "\\n\n", "", 1, 2.5, None, True, [1, "a"], {"b": None}], 3)}


def _const(draw: random.Random, depth: int) -> dict[str, Any]:
    return {"const": draw.choice(["fixed", 7, False, None, ["a", {"b": 1}]])}


def _plain(draw: random.Random, depth: int) -> dict[str, Any]:
    return {"type": draw.choice(["boolean", "null"]), "title": "A title", "description": "It says nothing."}


def _either(draw: random.Random, depth: int) -> dict[str, Any]:
    if draw.random() < 0.5:
        return {"anyOf": [_any(draw, depth), _any(draw, depth)]}
    return {
        "oneOf": [
            {"type": "object", "properties": {"kind": {"const": kind}, "of": _string(draw, 0)},
             "required": ["kind", "of"], "additionalProperties": False}
            for kind in ("a", "b")
        ]
    }  # fmt: skip


def _all_of(draw: random.Random, depth: int) -> dict[str, Any]:
    return {"allOf": [{"type": "string", "maxLength": 6}, {"minLength": draw.randint(0, 4)}]}


def _reference(draw: random.Random, depth: int) -> dict[str, Any]:
    return {"$ref": "#/$defs/shared"}


def chain() -> dict[str, Any]:
    """A recursive schema that can end, as a linked list does."""
    link = {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}
    node = {
        "type": "object",
        "properties": {"value": {"enum": [0, 1]}, "next": link},
        "required": ["value", "next"],
        "additionalProperties": False,
    }
    return {"$ref": "#/$defs/node", "$defs": {"node": node}}
