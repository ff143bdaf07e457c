"""Checkpoints on disk, made once a session."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lerobot_checkpoints import RECIPES, TEXTS, Made, make_policy, make_processors


@pytest.fixture(scope="session")
def tiny_vlm(tmp_path_factory) -> Path:
    """A SmolVLM of two narrow layers, with a byte-level tokenizer, on disk."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import (
        PreTrainedTokenizerFast,
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessor,
    )

    folder = tmp_path_factory.mktemp("vlm") / "smolvlm-tiny"
    marks = [
        "<fake_token_around_image>",
        "<image>",
        "<global-img>",
        "<end_of_utterance>",
    ]
    special = ["<|endoftext|>", *marks]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet
    )
    raw.train_from_iterator(TEXTS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token=special[0],
        pad_token=special[0],
        bos_token=special[0],
        extra_special_tokens={
            "fake_image_token": marks[0],
            "image_token": marks[1],
            "global_image_token": marks[2],
            "end_of_utterance_token": marks[3],
        },
    )
    config = SmolVLMConfig(
        text_config={
            "model_type": "llama",
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "vocab_size": len(tokenizer),
            "pad_token_id": 0,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 128,
            "patch_size": 16,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=0,
    )
    torch.manual_seed(3)
    SmolVLMForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    SmolVLMImageProcessor().save_pretrained(folder)
    (folder / "processor_config.json").write_text(
        json.dumps({"processor_class": "SmolVLMProcessor", "image_seq_len": 16})
    )
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, request):
    """Return the folder of a recipe's checkpoint, made once a session."""
    made: dict[str, Made] = {}

    def make(name: str) -> Made:
        if name not in made:
            kind, cameras, environment_state, _ = RECIPES[name]
            vlm = request.getfixturevalue("tiny_vlm") if kind == "smolvla" else None
            policy = make_policy(name, vlm)
            folder = tmp_path_factory.mktemp(name) / "pretrained_model"
            policy.save_pretrained(folder)
            for processor in make_processors(policy):
                processor.save_pretrained(folder)
            made[name] = Made(folder, cameras, environment_state, kind == "smolvla")
        return made[name]

    return make
