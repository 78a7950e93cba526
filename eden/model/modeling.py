"""MultimodalPhi: images become embeddings that stand where `<|image|>` tokens stood.

Letters: B batch rows, T tokens in a row, I images in the batch, N image tokens per image, Dv vision feature width,
D language model width, V vocabulary.

    pixels [I,3,H,W] -> vision tower -> image features [I,N,Dv] -> projector -> image embeddings [I,N,D]
                                                                                   | scattered over <|image|> tokens
    input_ids [B,T] -------------------- token embeddings [B,T,D] -----------------+--> Phi-3 -> logits [B,T,V]
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import CLIPVisionModelWithProjection, GenerationMixin, Phi3Model, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep

from .attention import PACKED_SDPA
from .configuration import MultimodalPhiConfig
from .loss import IGNORE_INDEX, answer_loss
from .projection import ProjectionBlock


@dataclass
class MultimodalPhiOutput(CausalLMOutputWithPast):
    """Causal language model output, plus `image_hidden_states`: the image embeddings [I,N,D] of this call, if any."""

    image_hidden_states: torch.FloatTensor | None = None


def image_features(
    tower: CLIPVisionModelWithProjection, pixel_values: torch.Tensor, feature: str, layer: int
) -> torch.Tensor:
    """Pixels [I,3,H,W] -> image features [I,N,Dv], without gradient: the tower is always frozen."""
    pixel_values = pixel_values.to(tower.dtype)
    with torch.no_grad():
        if feature == "pooled":
            return tower(pixel_values).image_embeds.unsqueeze(1)
        # The states behind the chosen layer, -1 being the last; the layers after it are not computed.
        vision = tower.vision_model
        states = vision.pre_layrnorm(vision.embeddings(pixel_values))
        for encoder_layer in vision.encoder.layers[: range(len(vision.encoder.layers) + 1)[layer]]:
            states = encoder_layer(states, None)
        return states[:, 1:]  # the class token is dropped


class MultimodalPhiPreTrainedModel(PreTrainedModel):
    config_class = MultimodalPhiConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["Phi3DecoderLayer", "CLIPEncoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True


class MultimodalPhiModel(MultimodalPhiPreTrainedModel):
    """The base model: vision tower, projector and language model, without a head."""

    def __init__(self, config: MultimodalPhiConfig):
        super().__init__(config)
        self.vision_tower = CLIPVisionModelWithProjection._from_config(config.vision_config)
        self.projector = ProjectionBlock(
            config.image_feature_size, config.text_config.hidden_size, config.projector_hidden_act
        )
        self.language_model = Phi3Model._from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixels [I,3,H,W] -> image features [I,N,Dv]."""
        return image_features(
            self.vision_tower, pixel_values, self.config.vision_feature, self.config.vision_feature_layer
        )

    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Exactly one of pixels [I,3,H,W] or image features [I,N,Dv]; `.pooler_output` is the embeddings [I,N,D]."""
        if (pixel_values is None) == (image_features is None):
            raise ValueError("pass pixel_values or image_features, exactly one of the two")
        features = self.encode_images(pixel_values) if pixel_values is not None else image_features
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=self.projector(features))

    def merge_image_embeddings(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor, image_embeds: torch.Tensor
    ) -> torch.Tensor:
        """Replaces the embeddings [B,T,D] of `<|image|>` tokens, in reading order, by those of the images [I,N,D].

        Raises:
            ValueError: the number of `<|image|>` tokens is not I * N; the message says both.
        """
        if input_ids is None:
            image_token = self.get_input_embeddings()(
                torch.tensor(self.config.image_token_id, device=inputs_embeds.device)
            )
            mask = (inputs_embeds == image_token).all(-1)
        else:
            mask = input_ids == self.config.image_token_id  # [B,T]
        num_tokens, num_embeddings = int(mask.sum()), image_embeds.shape[0] * image_embeds.shape[1]
        if num_tokens != num_embeddings:
            raise ValueError(
                f"the text holds {num_tokens} <|image|> tokens but the images give {num_embeddings} embeddings "
                f"({image_embeds.shape[0]} images of {image_embeds.shape[1]} tokens)"
            )
        image_embeds = image_embeds.to(inputs_embeds.device, inputs_embeds.dtype)
        return inputs_embeds.masked_scatter(mask.unsqueeze(-1), image_embeds)

    def pack(self, sample_lengths: Sequence[int], inputs_embeds: torch.Tensor) -> dict[str, Any]:
        """What keeps the samples of one row [1,T,D] apart, in the words of the attention that runs.

        Raises:
            ValueError: there is more than one row, or the samples do not fill it.
        """
        rows, width = inputs_embeds.shape[:2]
        if rows != 1 or sum(sample_lengths) != width:
            raise ValueError(f"samples of {sum(sample_lengths)} tokens in {rows} row(s) of {width}")
        device, implementation = inputs_embeds.device, self.config.text_config._attn_implementation
        position_ids = torch.cat([torch.arange(length, device=device) for length in sample_lengths]).unsqueeze(0)
        packed: dict[str, Any] = {"position_ids": position_ids, "attention_mask": None, "use_cache": False}
        if implementation == PACKED_SDPA:
            # A mask of four dimensions is passed on as it is: none as large as the row is made, and none is looked at.
            return packed | {"attention_mask": inputs_embeds.new_empty(0, 0, 0, 0), "sample_lengths": sample_lengths}
        if implementation.startswith("flash_attention"):
            ends = torch.tensor([0, *sample_lengths], device=device).cumsum(0, dtype=torch.int32)
            of_kernel = {"cu_seq_lens": ends, "max_length": max(sample_lengths)}
            return packed | {f"{name}_{side}": value for name, value in of_kernel.items() for side in "qk"}
        return packed  # transformers sees by the positions where a sample begins, and masks the others out

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,  # [B,T]
        attention_mask: torch.Tensor | None = None,  # [B,T]
        position_ids: torch.LongTensor | None = None,  # [B,T]
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,  # [B,T,D]
        pixel_values: torch.FloatTensor | None = None,  # [I,3,H,W]
        image_features: torch.FloatTensor | None = None,  # [I,N,Dv]
        sample_lengths: Sequence[int] | None = None,  # of samples packed into one row, B = 1; they see only themselves
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass input_ids or inputs_embeds, exactly one of the two")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)  # [B,T,D]
        image_embeds = None
        if pixel_values is not None or image_features is not None:
            image_embeds = self.get_image_features(pixel_values, image_features).pooler_output  # [I,N,D]
            inputs_embeds = self.merge_image_embeddings(input_ids, inputs_embeds, image_embeds)
        if sample_lengths is not None:
            packed = self.pack(sample_lengths, inputs_embeds)
            attention_mask, position_ids = packed.pop("attention_mask"), packed.pop("position_ids")
            kwargs |= packed
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )
        outputs["image_hidden_states"] = image_embeds
        return outputs


class MultimodalPhiForConditionalGeneration(MultimodalPhiPreTrainedModel, GenerationMixin):
    """The whole model: `MultimodalPhiModel` and a language modeling head."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: MultimodalPhiConfig):
        super().__init__(config)
        self.model = MultimodalPhiModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.lm_head = value

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        return self.model.get_image_features(pixel_values, **kwargs)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,  # [B,T]
        attention_mask: torch.Tensor | None = None,  # [B,T]
        position_ids: torch.LongTensor | None = None,  # [B,T]
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,  # [B,T,D]
        pixel_values: torch.FloatTensor | None = None,  # [I,3,H,W]
        image_features: torch.FloatTensor | None = None,  # [I,N,Dv]
        labels: torch.LongTensor | None = None,  # [B,T], -100 where no loss is taken
        logits_to_keep: int | torch.Tensor = 0,  # the last n positions; 0 keeps all
        return_logits: bool = True,  # False with labels: the loss alone, without logits of what is not supervised
        **kwargs: Any,
    ) -> MultimodalPhiOutput:
        if labels is not None:
            kwargs.setdefault("use_cache", False)  # a loss needs none, and with one, packed samples see each other
        # What the loss alone takes; everything else is the language model's.
        supervised = kwargs.pop("num_items_in_batch", None)
        kwargs.pop("return_dict", None)  # the output is always a dict-like object that also unpacks as a tuple
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            image_features=image_features,
            **kwargs,
        )
        states = outputs.last_hidden_state
        if labels is not None:
            if supervised is None:
                supervised = (labels[:, 1:] != IGNORE_INDEX).sum()
            # A batch may have none, if its images turned out damaged: that is a loss of 0, not 0/0.
            supervised = torch.as_tensor(supervised).clamp(min=1)
        loss = logits = None
        if return_logits:
            logits = self.lm_head(slice_logits_to_keep(states, logits_to_keep))  # [B,T,V]
            if labels is not None:
                vocab_size = self.config.text_config.vocab_size
                loss = self.loss_function(logits, labels, vocab_size=vocab_size, num_items_in_batch=supervised)
        elif labels is not None:
            loss = answer_loss(states, self.lm_head.weight, labels, supervised)
        else:
            raise ValueError("without labels there is nothing to return but logits")
        return MultimodalPhiOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
        )

    def prepare_inputs_for_generation(
        self, input_ids: torch.LongTensor, is_first_iteration: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        """Images enter with the prompt; later steps read them from the cache."""
        inputs = super().prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)
        if not is_first_iteration and kwargs.get("use_cache", True):
            inputs["pixel_values"] = inputs["image_features"] = None
        return inputs


__all__ = ["MultimodalPhiForConditionalGeneration", "MultimodalPhiModel"]
