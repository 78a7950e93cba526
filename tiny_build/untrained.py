"""eden-tiny before its training: its tokenizer, its processor, and its model with random weights."""

from __future__ import annotations

import math
import random

import torch
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, GenerationConfig, Phi3Config, PreTrainedTokenizerFast

from eden.core import location
from eden.model import MultimodalPhiConfig, MultimodalPhiForConditionalGeneration, MultimodalPhiProcessor
from eden.tiny.conversations import about
from eden.tiny.questions import KINDS, describe
from eden.tiny.smalltalk import SMALL_TALK
from eden.tiny.world import IMAGE_SIZE

from .tokenizer import train_tokenizer
from .tower import Pool

PATCH_SIZE = 16
POSITION_SCALE = 0.6
"""Of the first position embeddings, about that of a patch's. At CLIP's 0.02 pixels drown them, and in so short a
training they stay drowned: the patches then tell what is there but not where."""

COMMON_WORDS = """
the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which one
you were all her she there would their we him been has when who will no more if out so up said what its about than
into them can only other time new some could these two may first then do any like my now over such our man me even
most made after also well before must through years where much your way down should because long each just state
people those too mr how little good world make very year still see own work men day get here old life both between
being under three never know same last another while us off might great go come since against right came take used
himself few house use place during high without again home around small however found part school number image
picture photo photograph left side colour color large big look show tell describe answer question write read digit
letter name word number zero one two three four five six seven eight nine ten black white grey brown pink light dark
above below next near far cat dog bird tree car person face hand table chair water sky grass street building window
happy sad please thanks yes no maybe true false same different count compare bigger smaller higher lower
"""
"""They give the tokenizer more than shapes."""


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
        question = about(scene, KINDS, rng)
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
