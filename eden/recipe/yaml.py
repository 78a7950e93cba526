"""YAML 1.2, with the location of every key, so that a refusal can name its line."""

from __future__ import annotations

import io
from typing import Any

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
        return RecipeError(what, where=next((self[at] for at in around if at in self), None), hint=hint)


def parse(text: str, name: str, locations: Locations) -> Any:
    """The value of a YAML text; notes the location of each key."""
    from ruamel.yaml.constructor import DuplicateKeyError
    from ruamel.yaml.error import YAMLError

    yaml = _yaml()
    try:
        node = yaml.compose(text)
        _note_locations(node, name, (), locations)
        return None if node is None else yaml.constructor.construct_document(node)
    except (YAMLError, ValueError, RecursionError) as error:
        mark, problem = getattr(error, "problem_mark", None), str(getattr(error, "problem", error)).strip()
        hint = "Keep one." if isinstance(error, DuplicateKeyError) else "Check indentation and quotes."
        where = f"{name} line {mark.line + 1}" if mark else name
        raise RecipeError(f"not valid YAML ({problem})", where=where, hint=hint) from error


def plain(text: str) -> Any:
    """The value of a text that is one scalar to its end, whatever stands in it."""
    from ruamel.yaml import ScalarNode

    yaml = _yaml()
    return yaml.constructor.construct_object(ScalarNode(yaml.resolver.resolve(ScalarNode, text, (True, False)), text))


def dump(tree: dict[str, Any]) -> str:
    """The text that `parse` reads back as an equal value."""
    text, yaml = io.StringIO(), _yaml()
    yaml.default_flow_style, yaml.width, yaml.sort_base_mapping_type_on_output = False, 120, False
    yaml.dump(tree, text)
    return text.getvalue()


def _yaml() -> Any:
    from ruamel.yaml import YAML  # here, for who asks a model reads no recipe

    return YAML(typ="safe", pure=True)


def _note_locations(node: Any, name: str, key: Key, locations: Locations) -> None:
    if getattr(node, "id", None) == "mapping":
        for label, item in node.value:
            location = (*key, str(label.value))
            locations.setdefault(location, f"{name} line {label.start_mark.line + 1}")
            _note_locations(item, name, location, locations)
