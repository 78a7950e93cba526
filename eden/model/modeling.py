"""MultimodalPhi: images become embeddings that stand where `<|image|>` tokens stood.

Letters: B batch rows, T tokens in a row, I images in the batch, N image tokens per image, Dv vision feature width,
D language model width, V vocabulary.

    pixels [I,3,H,W] -> vision tower -> image features [I,N,Dv] -> projector -> image embeddings [I,N,D]
                                                                                   | scattered over <|image|> tokens
    input_ids [B,T] -------------------- token embeddings [B,T,D] ----------+--> language model -> logits [B,T,V]
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, torch_compilable_check
from transformers.utils.generic import can_return_tuple

from .attention import PACKED_SDPA
from .configuration import MultimodalPhiConfig
from .loss import IGNORE_INDEX, answer_loss
from .projection import ProjectionBlock
from .towers import layers_of_features, tower_of

try:
    from transformers.modeling_utils import slice_logits_to_keep
except ImportError:  # before 5.23; a checkpoint's files run from 5.16 on

    def slice_logits_to_keep(hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return hidden_states[:, kept]


@dataclass
class MultimodalPhiModelOutput(BaseModelOutputWithPast):
    """Language model output, plus `image_hidden_states`: the image embeddings [I,N,D] of this call, if any."""

    image_hidden_states: torch.FloatTensor | None = None


@dataclass
class MultimodalPhiOutput(CausalLMOutputWithPast):
    """Causal language model output, plus `image_hidden_states`: the image embeddings [I,N,D] of this call, if any."""

    image_hidden_states: torch.FloatTensor | None = None


RECORDED = ("output_hidden_states", "output_attentions")


def run_tower(
    tower: PreTrainedModel, pixel_values: torch.Tensor, feature: str, layer: int, **kwargs: Any
) -> BaseModelOutputWithPooling:
    """Pixels [I,3,H,W] -> image features [I,N,Dv] as `pooler_output`. A frozen tower keeps nothing for a gradient.

    `last_hidden_state` are the tower's states [I,class token and patches,hidden size] that the features are made of;
    all states and the attentions are there if `kwargs` or the tower's configuration ask for them.
    """
    pixel_values, kind = pixel_values.to(tower.dtype), tower_of(tower.config)
    if feature == "pooled":
        outputs = tower(pixel_values, **kwargs)
        states, features = outputs.last_hidden_state, getattr(outputs, kind.pooled).unsqueeze(1)
    elif any(kwargs.get(name, getattr(tower.config, name, False)) for name in RECORDED):
        outputs = tower(pixel_values, **{**kwargs, "output_hidden_states": True})
        states = outputs.hidden_states[layer]
        features = states[:, kind.class_tokens :]  # a class token is dropped
    else:
        # The states behind the chosen layer, -1 being the last; the layers after it are not computed.
        outputs, vision = BaseModelOutputWithPooling(), getattr(tower, "vision_model", tower)
        states = vision.embeddings(pixel_values)
        if kind.first_norm is not None:
            states = getattr(vision, kind.first_norm)(states)
        for encoder_layer in vision.encoder.layers[: layers_of_features(len(vision.encoder.layers), feature, layer)]:
            states = encoder_layer(states, None)
        features = states[:, kind.class_tokens :]
    return BaseModelOutputWithPooling(
        last_hidden_state=states,
        pooler_output=features,
        hidden_states=outputs.hidden_states,
        attentions=outputs.attentions,
    )


class MultimodalPhiPreTrainedModel(PreTrainedModel):
    config_class = MultimodalPhiConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True


class MultimodalPhiModel(MultimodalPhiPreTrainedModel):
    """The base model: vision tower, projector and language model, without a head."""

    def __init__(self, config: MultimodalPhiConfig):
        super().__init__(config)
        self.vision_tower = tower_of(config.vision_config).model_class._from_config(config.vision_config)
        self.projector = ProjectionBlock(
            config.image_feature_size, config.text_config.hidden_size, config.projector_hidden_act
        )
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()
        self.vision_tower.requires_grad_(False)

    def train(self, mode: bool = True) -> "MultimodalPhiModel":
        """As torch's. The tower stays frozen: `from_pretrained` makes its parameters anew, and ends with `eval()`.

        But for what PEFT trains of it, as `modules_to_save`.
        """
        super().train(mode)
        for name, parameter in self.vision_tower.named_parameters():
            if ".modules_to_save." not in name:
                parameter.requires_grad_(False)
        return self

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixels [I,3,H,W] -> image features [I,N,Dv]."""
        config = self.config
        return run_tower(
            self.vision_tower, pixel_values, config.vision_feature, config.vision_feature_layer
        ).pooler_output

    @can_return_tuple
    def get_image_features(
        self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """Pixels [I,3,H,W]; `.pooler_output` is the image embeddings [I,N,D], the rest is the tower's (`run_tower`)."""
        config = self.config
        outputs = run_tower(
            self.vision_tower, pixel_values, config.vision_feature, config.vision_feature_layer, **kwargs
        )
        outputs.pooler_output = self.projector(outputs.pooler_output)
        return outputs

    def image_embeddings(
        self,
        pixel_values: torch.Tensor | None,
        image_features: torch.Tensor | None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None,
    ) -> torch.Tensor | None:
        """Image embeddings [I,N,D] of pixels, of features or of what `get_image_features` gave; None of none.

        Raises:
            ValueError: more than one is given.
        """
        made = (mm_encoder_outputs or {}).get("image")
        if sum(given is not None for given in (pixel_values, image_features, made)) > 1:
            raise ValueError("pass one of pixel_values, image_features and mm_encoder_outputs, not several")
        if pixel_values is not None:
            made = self.get_image_features(pixel_values, return_dict=True)
        if image_features is not None:
            return self.projector(image_features)
        return None if made is None else made.pooler_output

    def image_mask(
        self, input_ids: torch.Tensor | None, inputs_embeds: Any, num_images: int, width: int
    ) -> torch.Tensor:
        """Where the `<|image|>` tokens are [B,T], by their ids [B,T], or else by their embeddings [B,T,D].

        Raises:
            ValueError: their number is not that of `num_images` images of `width` tokens; the message says both.
        """
        if input_ids is None or not input_ids.numel():  # generate() makes empty ids of embeddings
            token = torch.full((), self.config.image_token_id, device=inputs_embeds.device)
            mask = (inputs_embeds == self.get_input_embeddings()(token)).all(-1)
        else:
            mask = input_ids == self.config.image_token_id
        torch_compilable_check(
            mask.sum() == num_images * width,
            lambda: (
                f"the text holds {int(mask.sum())} <|image|> tokens but the images give {num_images * width} "
                f"embeddings ({num_images} images of {width} tokens)"
            ),
        )
        return mask

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

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,  # [B,T]
        attention_mask: torch.Tensor | None = None,  # [B,T]
        position_ids: torch.LongTensor | None = None,  # [B,T]
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,  # [B,T,D]
        pixel_values: torch.FloatTensor | None = None,  # [I,3,H,W]
        image_features: torch.FloatTensor | None = None,  # [I,N,Dv]
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,  # "image": of `get_image_features`
        sample_lengths: Sequence[int] | None = None,  # of samples packed into one row, B = 1; they see only themselves
        **kwargs: Unpack[TransformersKwargs],
    ) -> MultimodalPhiModelOutput:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass input_ids or inputs_embeds, exactly one of the two")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)  # [B,T,D]
        image_embeds: Any = self.image_embeddings(pixel_values, image_features, mm_encoder_outputs)
        if image_embeds is not None:
            image_embeds = image_embeds.to(inputs_embeds.device, inputs_embeds.dtype)  # [I,N,D]
            mask = self.image_mask(input_ids, inputs_embeds, *image_embeds.shape[:2])  # [B,T]
            inputs_embeds = inputs_embeds.masked_scatter(mask.unsqueeze(-1), image_embeds)  # in reading order
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
        return MultimodalPhiModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=image_embeds,
        )


class MultimodalPhiForConditionalGeneration(MultimodalPhiPreTrainedModel, GenerationMixin):
    """The whole model: `MultimodalPhiModel` and a language modeling head."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

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

    def get_image_features(
        self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        return self.model.get_image_features(pixel_values, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,  # [B,T]
        attention_mask: torch.Tensor | None = None,  # [B,T]
        position_ids: torch.LongTensor | None = None,  # [B,T]
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,  # [B,T,D]
        pixel_values: torch.FloatTensor | None = None,  # [I,3,H,W]
        image_features: torch.FloatTensor | None = None,  # [I,N,Dv]
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,  # by this, generate() sees images once
        labels: torch.LongTensor | None = None,  # [B,T], -100 where no loss is taken
        shift_labels: torch.LongTensor | None = None,  # [B,T], the labels of the positions behind, in place of `labels`
        logits_to_keep: int | torch.Tensor = 0,  # the last n positions; 0 keeps all
        return_logits: bool = True,  # False with labels: the loss alone, without logits of what is not supervised
        **kwargs: Unpack[TransformersKwargs],
    ) -> MultimodalPhiOutput:
        targets: torch.Tensor | None = shift_labels
        if targets is None and labels is not None:
            targets = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
        supervised = kwargs.pop("num_items_in_batch", None)  # the loss's alone; what is left is the language model's
        if targets is not None:
            kwargs.setdefault("use_cache", False)  # a loss needs none, and with one, packed samples see each other
            supervised = (targets != IGNORE_INDEX).sum() if supervised is None else torch.as_tensor(supervised)
            supervised = supervised.clamp(min=1)  # a batch may have none, its images damaged: a loss of 0, not 0/0
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            image_features=image_features,
            mm_encoder_outputs=mm_encoder_outputs,
            return_dict=True,
            **kwargs,
        )
        states = outputs.last_hidden_state
        loss = logits = None
        if return_logits:
            logits = self.lm_head(slice_logits_to_keep(states, logits_to_keep))  # [B,T,V]
            if targets is not None:
                loss = self.loss_function(
                    logits,
                    labels,
                    vocab_size=self.config.text_config.vocab_size,
                    num_items_in_batch=supervised,
                    shift_labels=targets,
                )
        elif targets is not None:
            loss = answer_loss(states, self.lm_head.weight, targets, supervised)
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
        self,
        input_ids: torch.LongTensor,
        inputs_embeds: torch.Tensor | None = None,  # by this name generate() knows that it may be given them
        is_first_iteration: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Images enter with the prompt; later steps read them from the cache."""
        inputs = super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        if not is_first_iteration and kwargs.get("use_cache", True):
            inputs["pixel_values"] = inputs["image_features"] = None
        return inputs

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.LongTensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.LongTensor, dict[str, Any]]:
        """A prompt that is repeated takes its images along as a group, [a b] -> [a b a b], not each for itself."""
        images, width = {}, self.config.num_image_tokens
        seen = (kwargs.get("mm_encoder_outputs") or {}).get("image")
        if expand_size > 1 and seen is not None:  # transformers repeats them so, but does not say that some lack
            self.model.image_mask(input_ids, kwargs.get("inputs_embeds"), len(seen.pooler_output), width)
        for name in ("pixel_values", "image_features"):
            if expand_size > 1 and kwargs.get(name) is not None:
                values = kwargs.pop(name)
                mask = self.model.image_mask(input_ids, kwargs.get("inputs_embeds"), len(values), width)
                groups = values.split((mask.sum(-1) // width).tolist())
                images[name] = torch.cat([group.repeat(expand_size, *[1] * (values.ndim - 1)) for group in groups])
        input_ids, kwargs = super()._expand_inputs_for_generation(expand_size, is_encoder_decoder, input_ids, **kwargs)
        return input_ids, kwargs | images

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As transformers', which names the class that is saved; who builds the base model (vLLM) looks for its."""
        base = f"{MultimodalPhiModel.__module__.rpartition('.')[2]}.{MultimodalPhiModel.__name__}"
        self.config.auto_map = (getattr(self.config, "auto_map", None) or {}) | {"AutoModel": base}
        super().save_pretrained(*args, **kwargs)


__all__ = ["MultimodalPhiForConditionalGeneration", "MultimodalPhiModel"]
