"""MultimodalPhiProcessor: a conversation becomes ids, masks, pixels and labels. The only template of the package.

conversation -> chat_template.jinja -> text, each image one <|image|> -> N copies per image -> ids [T], labels [T]
"""

from inspect import signature
from typing import Any

from transformers import AddedToken, PreTrainedTokenizerBase
from transformers.processing_utils import MultiModalData, ProcessorMixin

from .families import FAMILIES
from .loss import IGNORE_INDEX

IMAGE_TOKEN = "<|image|>"


class MultimodalPhiProcessor(ProcessorMixin):
    """An image processor, the language model's tokenizer and Eden's chat template for it.

    Args:
        image_processor: CLIP's (resize, crop, normalise), or LLaVA's, which pads first; any that makes [I,3,H,W].
        tokenizer: the language model's; `<|image|>` is added if it lacks it, taking the next free id.
        num_image_tokens: `N`, the tokens one image takes (`MultimodalPhiConfig.num_image_tokens`).
        family: the language model's, a name of `families.FAMILIES`.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        num_image_tokens: int = 1,
        family: str = "phi3",
        chat_template: str | None = None,
        **kwargs: Any,
    ):
        if tokenizer is not None and IMAGE_TOKEN not in tokenizer.get_added_vocab():
            # rstrip as Phi-3.5's own control tokens have it: the newline behind an image costs no token.
            tokenizer.add_tokens(
                AddedToken(IMAGE_TOKEN, special=True, normalized=False, rstrip=True), special_tokens=True
            )
        self.num_image_tokens = num_image_tokens
        self.family = family
        self.image_token = IMAGE_TOKEN
        if tokenizer is not None:  # transformers' own guess leaves out added tokens that the template does not write
            tokenizer.chat_control_tokens = [token for token in tokenizer.get_added_vocab() if not token.isspace()]
        self.image_token_id: int = -1 if tokenizer is None else tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        if chat_template is None:
            chat_template = FAMILIES[family].chat_template
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        """The N copies of `<|image|>` that stand for one image (called by transformers' and vLLM's processors)."""
        return self.image_token * self.num_image_tokens

    def _get_num_multimodal_tokens(self, image_sizes: list[list[int]] | None = None, **kwargs: Any) -> MultiModalData:
        """How many tokens images of these sizes (height, width in pixels) take; vLLM asks before it encodes."""
        if image_sizes is None:
            return MultiModalData()
        return MultiModalData(
            num_image_tokens=[self.num_image_tokens] * len(image_sizes), num_image_patches=[1] * len(image_sizes)
        )

    def encode(self, conversation: list[dict[str, Any]], *, add_generation_prompt: bool = False) -> dict[str, Any]:
        """One conversation, without padding.

        Args:
            conversation: `{"role", "content"}` turns; content is a string or a list of `{"type": "text", "text"}` and
                `{"type": "image", "image": PIL image}` parts.
            add_generation_prompt: True to ask for an answer, or for the rest of one where the last turn is the
                assistant's. Control tokens inside the turns' text are then encoded as plain text, so that a user
                cannot forge a turn or an image.

        Returns:
            `input_ids` list of T ids; `labels` list of T, the id where an assistant says it (its closing token
            included) and -100 elsewhere, as in an assistant's turn with `"weight": 0`; `pixel_values` float32 [I,3,H,W]
            if the image parts carry their images (a part without one still takes its N tokens: ids and labels can be
            had before any pixel is decoded).

        Raises:
            ValueError: a training conversation (no generation prompt) contains control tokens in its text; or a prompt
                does, and this transformers is older than 5.23 and cannot encode them as plain text.
        """
        # transformers offers the assistant mask or the neutralising of control tokens, not both in one call: a
        # prompt needs no mask, and a training sample has no business carrying control tokens.
        sanitizes = "sanitize_control_tokens" in signature(self.tokenizer.apply_chat_template).parameters
        if not (add_generation_prompt and sanitizes) and (token := self.find_control_token(conversation)):
            raise ValueError(f"the text contains the control token {token}")
        is_begun = add_generation_prompt and conversation[-1]["role"] == "assistant"
        encoded = self.tokenizer.apply_chat_template(
            conversation,
            chat_template=self.chat_template,
            num_image_tokens=self.num_image_tokens,
            return_dict=True,
            add_generation_prompt=add_generation_prompt and not is_begun,
            continue_final_message=is_begun,
            return_assistant_tokens_mask=not add_generation_prompt,
            sanitize_control_tokens=add_generation_prompt,
        )
        ids: list[int] = encoded["input_ids"]
        mask = [0] * len(ids) if add_generation_prompt else encoded["assistant_masks"]
        # Phi's `<|assistant|>` swallows the whitespace an answer begins with, which would put it inside the answer.
        header = self.tokenizer.convert_tokens_to_ids(FAMILIES[self.family].header)
        spoken = [said and token_id != header for token_id, said in zip(ids, mask, strict=True)]
        labels = [token_id if said else IGNORE_INDEX for token_id, said in zip(ids, spoken, strict=True)]
        starts = [at for at, said in enumerate(spoken) if said and not spoken[at - 1]]  # no text begins with an answer
        answers = [turn for turn in conversation if turn["role"] == "assistant"]
        for turn, start, end in zip(answers, starts, [*starts[1:], len(ids)], strict=False):  # a prompt has none
            if turn.get("weight") == 0:
                labels[start:end] = [IGNORE_INDEX] * (end - start)
        return {"input_ids": ids, "labels": labels, **self.pixels(conversation)}

    def pixels(self, conversation: list[dict[str, Any]]) -> dict[str, Any]:
        """The `pixel_values` of `encode`, alone; nothing if no image part carries its image."""
        images = [part["image"] for part in _parts(conversation) if part.get("image") is not None]
        return {"pixel_values": self.image_processor(images, return_tensors="pt")["pixel_values"]} if images else {}

    def find_control_token(self, conversation: list[dict[str, Any]]) -> str | None:
        """The first control token (`<|end|>`, `<|image|>`, ...) written in the turns' text, or None."""
        control_tokens = self.tokenizer.chat_control_tokens
        texts = [part["text"] for part in _parts(conversation) if part["type"] == "text"]
        return next((token for text in texts for token in control_tokens if token in text), None)


def _parts(conversation: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All parts of all turns, in reading order; a turn whose content is a string is one text part."""
    parts: list[dict[str, Any]] = []
    for turn in conversation:
        content = turn["content"]
        parts.extend([{"type": "text", "text": content}] if isinstance(content, str) else content)
    return parts


__all__ = ["MultimodalPhiProcessor"]
