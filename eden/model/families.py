"""What differs between language models, as data: one row for each family. All else is the same code.

A family is known by the `model_type` of its configuration and by the control tokens of its tokenizer, never by a name.
Its chat template is `templates/<name>.jinja`, behind `chat_template.jinja`, which reads a message's parts for all. On
text, a template writes byte for byte what the published one writes where nobody thinks aloud and there are no tools;
what it leaves out is said in its first lines.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Family:
    """A kind of language model.

    Attributes:
        name: of the row, and of the template's file.
        title: for people.
        model_type: transformers' name of the architecture.
        control_tokens: what its template writes, and its tokenizer must have.
        header: opens an assistant's turn; some tokenizers let it swallow the white space that an answer begins with.
        ends: what ends an answer; the first closes every turn.
        lora_targets: the linear layers that adapters go on, unless a recipe says which.
    """

    name: str
    title: str
    model_type: str
    control_tokens: tuple[str, ...]
    header: str
    ends: tuple[str, ...]
    lora_targets: tuple[str, ...]

    @property
    def chat_template(self) -> str:
        """The template, in Jinja, with `{% generation %}` marks around what an assistant says."""
        folder = Path(__file__).parent
        parts = (folder / "chat_template.jinja", folder / "templates" / f"{self.name}.jinja")
        return "".join(part.read_text(encoding="utf-8") for part in parts)


PHI = ("<|user|>", "<|assistant|>", "<|end|>")
CHATML = ("<|im_start|>", "<|im_end|>")
JOINT = ("o_proj", "qkv_proj", "gate_up_proj")
SEPARATE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        # Phi-4-mini is of Phi-3's architecture and has its control tokens, and one for tools beside them.
        Family("phi4", "Phi-4-mini", "phi3", (*PHI, "<|tool|>"), "<|assistant|>", ("<|end|>", "<|endoftext|>"), JOINT),
        Family("phi3", "Phi-3", "phi3", PHI, "<|assistant|>", ("<|end|>", "<|endoftext|>"), JOINT),
        Family("smollm2", "SmolLM2", "llama", CHATML, "<|im_start|>", ("<|im_end|>", "<|endoftext|>"), SEPARATE),
        Family(
            "smollm3",
            "SmolLM3",
            "smollm3",
            (*CHATML, "<think>", "</think>"),
            "<|im_start|>",
            ("<|im_end|>", "<|end_of_text|>"),
            SEPARATE,
        ),
        Family(
            "qwen3",
            "Qwen3",
            "qwen3",
            (*CHATML, "<think>", "</think>"),
            "<|im_start|>",
            ("<|im_end|>", "<|endoftext|>"),
            SEPARATE,
        ),
    )
}
"""By name, the more particular of an architecture first."""


def families_of(model_type: str) -> list[Family]:
    """The families of an architecture.

    Raises:
        ValueError: there is none; the message names those that there are.
    """
    if found := [family for family in FAMILIES.values() if family.model_type == model_type]:
        return found
    known = ", ".join(f"{family.title} ({family.model_type})" for family in FAMILIES.values())
    raise ValueError(f"no language model of type {model_type!r} is known; those that work: {known}")


def family_of(model_type: str, vocabulary: Collection[str]) -> Family:
    """The family of a model with this vocabulary.

    Raises:
        ValueError: the architecture is not known, or the tokenizer lacks a control token; the message says which.
    """
    families = families_of(model_type)
    for family in families:
        if all(token in vocabulary for token in family.control_tokens):
            return family
    lacking = next(token for token in families[-1].control_tokens if token not in vocabulary)
    raise ValueError(f"the tokenizer lacks {lacking}, which {families[-1].title} ends or begins turns with")
