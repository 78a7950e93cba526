"""The recipe of a run: typed, checked before anything is loaded, with the line of every fault."""

from .recipe import (
    DataSection,
    LoraSection,
    ModelSection,
    QuantizationSection,
    Recipe,
    SourceSection,
    load_recipe,
    shipped_recipes,
)

__all__ = [
    "DataSection",
    "LoraSection",
    "ModelSection",
    "QuantizationSection",
    "Recipe",
    "SourceSection",
    "load_recipe",
    "shipped_recipes",
]
