"""YAML read by the 1.2 rules, with the location of every key, so that a refusal can name its line.

PyYAML's own rules take `no` for false and `1e-4` for text.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from ..errors import RecipeError

Key = tuple[str | int, ...]  # a location in a file: ("training", "max_steps")


class Locations(dict[Key, str]):
    """Where each key was written. It is no part of what a recipe says, so any two are equal."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Locations)

    def error(self, key: str | Key, what: str, hint: str) -> RecipeError:
        """An error at `key`, or at the nearest section around it."""
        key = tuple(key.split(".")) if isinstance(key, str) else key
        around = (key[:length] for length in range(len(key), -1, -1))
        return RecipeError(
            what, where=next((self[location] for location in around if location in self), None), hint=hint
        )


def parse(text: str, name: str, locations: Locations) -> Any:
    """The value of a YAML text; notes the location of each key."""
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        _note_locations(node, name, (), locations)
        return None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", error)
        where = f"{name} line {mark.line + 1}" if mark else name
        raise RecipeError(f"not valid YAML ({problem})", where=where, hint="Check indentation and quotes.") from error


def _note_locations(node: yaml.Node | None, name: str, key: Key, locations: Locations) -> None:
    """Refuses equal keys on the way, of which YAML would let the last one win."""
    entries: list[tuple[yaml.Node, yaml.Node]] = node.value if isinstance(node, yaml.MappingNode) else []
    for label, item in entries:
        part = str(label.value)
        location = f"{name} line {label.start_mark.line + 1}"
        if (*key, part) in locations:
            raise RecipeError(
                f"{part!r} is given twice", where=location, hint=f"Keep one; see {locations[*key, part]}."
            )
        locations[*key, part] = location
        _note_locations(item, name, (*key, part), locations)


class Loader(yaml.SafeLoader):
    """YAML 1.2's plain scalars: PyYAML's own rules take `no` for false and `1e-4` for text."""

    yaml_implicit_resolvers = {}

    def plain(self, text: str) -> Any:
        tag = self.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
        return self.construct_object(yaml.ScalarNode(tag, text))


class Dumper(yaml.SafeDumper):
    """Quotes the text that either set of rules would take for something else, so that every reader agrees."""


_FLOAT = r"[-+]?((\d+\.\d*|\.\d+)([eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$"
_BOOL = r"(true|True|TRUE|false|False|FALSE)$"
_PLAIN = {"null": r"(null|Null|NULL|~)?$", "bool": _BOOL, "int": r"[-+]?(0|[1-9]\d*)$", "float": _FLOAT}
for _name, _pattern in _PLAIN.items():
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(_pattern, re.ASCII), None)
Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(_FLOAT, re.ASCII), None)
