"""YAML 1.2, with the location of every key, so that a refusal can name its line."""

from __future__ import annotations

import io
import re
from typing import Any

from ..errors import RecipeError

Key = tuple[str | int, ...]  # a location in a file: ("training", "max_steps")


OTHER_IN_1_1 = re.compile(r"(?i:y|n|yes|no|on|off)|[-+]?\d[\d_]*(:[0-5]?\d)+(\.[\d_]*)?")
"""Text that YAML 1.1 takes for a truth value or a number."""


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
    """The text that `parse` reads back as an equal value, and so does a reader that goes by YAML 1.1."""
    from ruamel.yaml.representer import SafeRepresenter

    class Representer(SafeRepresenter):
        def text(self, value: str) -> Any:
            return self.represent_scalar("tag:yaml.org,2002:str", value, "'" if OTHER_IN_1_1.fullmatch(value) else None)

        def number(self, value: float) -> Any:
            node = self.represent_float(value)
            if "." not in node.value:  # `1e-05`, which is text in 1.1
                node.value = node.value.replace("e", ".0e")
            return node

    Representer.add_representer(str, Representer.text)
    Representer.add_representer(float, Representer.number)
    text, yaml = io.StringIO(), _yaml()
    yaml.Representer = Representer
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
