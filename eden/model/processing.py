"""MultimodalPhiProcessor: a conversation becomes ids, masks, pixels and labels. The only template of the package.

conversation -> chat_template.jinja -> text, each image one <|image|> -> N copies per image -> ids [T], labels [T]
"""

from collections.abc import Sequence
from inspect import signature
from typing import Any

import PIL.Image
import torch
from transformers import AddedToken, PreTrainedTokenizerBase
from transformers.image_transforms import to_pil_image
from transformers.image_utils import make_flat_list_of_images
from transformers.processing_utils import MultiModalData, ProcessorMixin

from .families import FAMILIES
from .loss import IGNORE_INDEX
from .tiling import ROW_END, grid_of, pixels_of, side_of, views_of

IMAGE_TOKEN = "<|image|>"


class MultimodalPhiProcessor(ProcessorMixin):
    """An image processor, the language model's tokenizer and Eden's chat template for it.

    Args:
        image_processor: CLIP's (resize, crop, normalise), or LLaVA's, which pads first; any that makes [I,3,H,W].
        tokenizer: the language model's; `<|image|>` is added if it lacks it, taking the next free id.
        num_image_tokens: `N`, the tokens one image takes (`MultimodalPhiConfig.num_image_tokens`).
        family: the language model's, a name of `families.FAMILIES`.
        tiles: as `MultimodalPhiConfig.tiles`; a picture is then several images, I in all of a conversation.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        num_image_tokens: int = 1,
        family: str = "phi3",
        chat_template: str | None = None,
        tiles: int = 0,
        **kwargs: Any,
    ):
        if tokenizer is not None and IMAGE_TOKEN not in tokenizer.get_added_vocab():
            # rstrip as Phi-3.5's own control tokens have it: the newline behind an image costs no token.
            tokenizer.add_tokens(
                AddedToken(IMAGE_TOKEN, special=True, normalized=False, rstrip=True), special_tokens=True
            )
        self.num_image_tokens = num_image_tokens
        self.family = family
        self.tiles = tiles
        self.image_token = IMAGE_TOKEN
        if tokenizer is not None:  # transformers' own guess leaves out added tokens that the template does not write
            tokenizer.chat_control_tokens = [token for token in tokenizer.get_added_vocab() if not token.isspace()]
        self.image_token_id: int = -1 if tokenizer is None else tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        if chat_template is None:
            chat_template = FAMILIES[family].chat_template
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        """The copies of `<|image|>` that stand for one picture (called by transformers' and vLLM's processors)."""
        rows, columns = image_inputs["image_grids"][image_idx] if self.tiles else (0, 0)
        view = self.image_token * self.num_image_tokens
        return ROW_END.join([view, *[view * columns] * rows])

    def _process_images(self, images: Any, **kwargs: Any) -> tuple[dict[str, Any], list[str]]:
        if not self.tiles:
            return super()._process_images(images, **kwargs)
        pictures = [to_pil_image(image) for image in make_flat_list_of_images(images)]
        views = [view for picture in pictures for view in views_of(picture, self.image_processor, self.tiles)]
        inputs = self.image_processor(views, **kwargs)
        inputs["image_grids"] = [self._grid(picture.height, picture.width) for picture in pictures]
        return inputs, [self.replace_image_token(inputs, place) for place in range(len(pictures))]

    @property
    def unused_input_names(self) -> list[str]:
        """What `__call__` leaves out of what it returns."""
        return ["image_grids"]

    @property
    def _row_end(self) -> list[int]:
        """The ids of a row end, as they are between two images."""
        ids: list[int] = self.tokenizer.encode(f"{IMAGE_TOKEN}{ROW_END}{IMAGE_TOKEN}", add_special_tokens=False)
        return ids[1:-1]

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        return grid_of(height, width, self.tiles, side_of(self.image_processor)) if self.tiles else (0, 0)

    def _image_ids(self, rows: int, columns: int) -> list[int]:
        """The ids of `replace_image_token`."""
        view = [self.image_token_id] * self.num_image_tokens
        return view + (self._row_end + view * columns) * rows

    def _get_num_multimodal_tokens(self, image_sizes: list[list[int]] | None = None, **kwargs: Any) -> MultiModalData:
        """How many tokens images of these sizes (height, width in pixels) take; vLLM asks before it encodes."""
        if image_sizes is None:
            return MultiModalData()
        grids = [self._grid(height, width) for height, width in image_sizes]
        return MultiModalData(
            num_image_tokens=[len(self._image_ids(*grid)) for grid in grids],
            num_image_patches=[1 + rows * columns for rows, columns in grids],
        )

    @property
    def most_image_tokens(self) -> int:
        """Tokens that a picture takes at most."""
        grids = [(rows, self.tiles // rows) for rows in range(1, self.tiles + 1)]
        return max(len(self._image_ids(*grid)) for grid in [(0, 0), *grids])

    def encode(self, conversation: list[dict[str, Any]], *, add_generation_prompt: bool = False) -> dict[str, Any]:
        """One conversation, without padding.

        Args:
            conversation: `{"role", "content"}` turns; content is a string or a list of `{"type": "text", "text"}` and
                `{"type": "image", "image": PIL image}` parts; one without its image has, if there are tiles, a `size`:
                a function that gives width and height in pixels.
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
            num_image_tokens=1 if self.tiles else self.num_image_tokens,
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
        if self.tiles:
            ids, labels = self._with_tiles(ids, labels, conversation)
        return {"input_ids": ids, "labels": labels, **self.pixels(conversation)}

    def _with_tiles(
        self, ids: list[int], labels: list[int], conversation: list[dict[str, Any]]
    ) -> tuple[list[int], list[int]]:
        """Ids and labels with as many tokens in the place of each `<|image|>` as its picture takes."""
        parts = [part for part in _parts(conversation) if part["type"] == "image"]
        sizes = iter([part["size"]() if part.get("image") is None else part["image"].size for part in parts])
        all_ids, all_labels = [], []
        for token_id, label in zip(ids, labels, strict=True):
            new = [token_id]
            if token_id == self.image_token_id:
                width, height = next(sizes)
                new = self._image_ids(*self._grid(height, width))
            all_ids += new
            all_labels += [label] * len(new)  # that of an image is -100
        return all_ids, all_labels

    def pixels(self, conversation: list[dict[str, Any]]) -> dict[str, Any]:
        """The `pixel_values` of `encode`, alone; nothing if no image part carries its image."""
        images = [part["image"] for part in _parts(conversation) if part.get("image") is not None]
        return {"pixel_values": self.image_pixels(images)} if images else {}

    def image_pixels(self, images: Sequence[PIL.Image.Image]) -> torch.Tensor:
        """Pixels [I,3,H,W] of RGB pictures and their tiles."""
        return pixels_of(images, self.image_processor, self.tiles)

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
