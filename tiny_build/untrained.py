"""eden-tiny before its training: its tokenizer, its processor, and its model with random weights."""

from __future__ import annotations

import math
import random

import torch
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, GenerationConfig, Phi3Config, PreTrainedTokenizerFast

from eden.core import location
from eden.model import MultimodalPhiConfig, MultimodalPhiForConditionalGeneration, MultimodalPhiProcessor
from eden.tiny.dataset import any_question
from eden.tiny.questions import describe
from eden.tiny.smalltalk import COMMON_WORDS, SMALL_TALK
from eden.tiny.world import IMAGE_SIZE

from .tokenizer import train_tokenizer
from .tower import Pool

PATCH_SIZE = 16
POSITION_SCALE = 0.6
"""Of the first position embeddings, about that of a patch's. At CLIP's 0.02 pixels drown them, and in so short a
training they stay drowned: the patches then tell what is there but not where."""


def new_processor(tokenizer: PreTrainedTokenizerFast) -> MultimodalPhiProcessor:
    return MultimodalPhiProcessor(
        CLIPImageProcessorPil(
            size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
        ),
        tokenizer,
        num_image_tokens=(IMAGE_SIZE // PATCH_SIZE) ** 2,
    )


def build_tokenizer(pool: Pool, seed: int) -> PreTrainedTokenizerFast:
    rng = random.Random(f"tokenizer {seed}")
    sentences = [text for pair in SMALL_TALK for text in pair] * 5 + COMMON_WORDS.split() * 3
    for scene in pool.scenes[:4000]:
        question = any_question(scene, rng)
        sentences += [describe(scene), question.text, question.answer]
    return train_tokenizer(sentences)


def new_model(processor: MultimodalPhiProcessor) -> MultimodalPhiForConditionalGeneration:
    tokenizer = processor.tokenizer
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=128,
    )
    language = Phi3Config(
        vocab_size=math.ceil(len(tokenizer) / 64) * 64,  # as Phi-3.5, padded: <|image|> finds a spare row
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        partial_rotary_factor=0.5,  # half of each head looks for what a thing is, wherever it stands
        initializer_range=0.06,  # about 1 / sqrt(width), as Phi's 0.02 is for its own
        max_position_embeddings=1024,
        original_max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = MultimodalPhiForConditionalGeneration(
        MultimodalPhiConfig(
            vision_config=vision,
            text_config=language,
            vision_feature="patches",
            speech_model=location.EDEN_TINY,
            image_token_id=processor.image_token_id,
        )
    )
    torch.nn.init.normal_(
        model.model.vision_tower.vision_model.embeddings.position_embedding.weight, std=POSITION_SCALE
    )
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.convert_tokens_to_ids("<|end|>"), tokenizer.eos_token_id],
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    return model
