"""The recipe of a run: typed, checked before anything is loaded, with the line of every fault."""

from .recipe import Recipe, load_recipe, shipped_recipes
from .sections import DataSection, LoraSection, ModelSection, QuantizationSection, RehearsalSection, SourceSection

__all__ = [
    "DataSection",
    "LoraSection",
    "ModelSection",
    "QuantizationSection",
    "Recipe",
    "RehearsalSection",
    "SourceSection",
    "load_recipe",
    "shipped_recipes",
]
