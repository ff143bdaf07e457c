"""Tiny checkpoints of LeRobot's larger policies, on backbones that are made here."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from lerobot_checkpoints import (
    ONE,
    TEXTS,
    TWO,
    A,
    Made,
    features,
    lerobot_is_new,
    stats,
)

# name: (policy type, cameras, configuration)
RECIPES: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "multi_task_dit": (
        "multi_task_dit",
        TWO,
        {
            "n_obs_steps": 2,
            "horizon": 8,
            "n_action_steps": 3,
            "num_train_timesteps": 10,
            "num_inference_steps": 3,
            "hidden_dim": 16,
            "num_layers": 1,
            "num_heads": 2,
            "timestep_embed_dim": 8,
            "image_crop_shape": None,
            "image_resize_shape": (32, 32),
            "tokenizer_max_length": 16,
        },
    ),
    "xvla": (
        "xvla",
        TWO,
        {
            "chunk_size": 8,
            "n_action_steps": 3,
            "num_denoising_steps": 2,
            "action_mode": "auto",
            "max_action_dim": 9,
            "max_state_dim": 8,
            "hidden_size": 16,
            "depth": 1,
            "num_heads": 2,
            "num_domains": 2,
            "len_soft_prompts": 2,
            "dim_time": 8,
            "max_len_seq": 128,
            "tokenizer_max_length": 16,
            "resize_imgs_with_padding": (64, 64),
            "florence_config": {
                "projection_dim": 16,  # where 0.4.4 looks for it
                "vision_config": {
                    "dim_embed": [8, 8, 8, 16],
                    "num_heads": [1, 1, 1, 2],
                    "num_groups": [1, 1, 1, 2],
                    "depths": [1, 1, 1, 1],
                    "window_size": 4,
                    "image_pos_embed": {
                        "type": "learned_abs_2d",
                        "max_pos_embeddings": 50,
                    },
                    "projection_dim": 16,
                },
                "text_config": {
                    "vocab_size": 320,
                    "d_model": 16,
                    "encoder_layers": 1,
                    "decoder_layers": 1,
                    "encoder_ffn_dim": 16,
                    "decoder_ffn_dim": 16,
                    "encoder_attention_heads": 2,
                    "decoder_attention_heads": 2,
                    "max_position_embeddings": 128,
                },
            },
        },
    ),
    "pi0": (
        "pi0",
        TWO,
        {
            "chunk_size": 8,
            "n_action_steps": 3,
            "num_inference_steps": 2,
            "max_state_dim": 8,
            "max_action_dim": 9,
            "image_resolution": (28, 28),
            "tokenizer_max_length": 16,
        },
    ),
}
RECIPES["pi05"] = ("pi05", ONE, {**RECIPES["pi0"][2], "tokenizer_max_length": 128})


def here() -> list[str]:
    """Return the recipes that the installed LeRobot can follow.

    0.4.4 has no multi-task DiT, and its pi0 and pi05 want a fork of transformers.
    """
    try:
        version = importlib.metadata.version("lerobot")
    except importlib.metadata.PackageNotFoundError:
        return []
    return ["xvla"] if version.startswith("0.4") else list(RECIPES)


def make_checkpoint(name: str, folder: Path, **changes: Any) -> Made:
    """Save an untrained policy and its processors under ``folder``."""
    from lerobot.policies.factory import (
        get_policy_class,
        make_policy_config,
        make_pre_post_processors,
    )

    kind, cameras, options = RECIPES[name]
    backbone = folder / "clip-tiny"
    make_tokenizer(backbone)
    options = {**options, **changes}
    if kind == "multi_task_dit":
        make_clip(backbone)
        options |= {
            "vision_encoder_name": str(backbone),
            "text_encoder_name": str(backbone),
        }
    if kind == "xvla":
        options["tokenizer_name"] = str(backbone)
    config = make_policy_config(kind, **(features(cameras, False) | options))
    torch.manual_seed(7)
    policy = get_policy_class(kind)(config).eval()
    for key, weight in policy.named_parameters():
        # 0.4.4's Florence leaves it as the memory was, now and then NaN.
        if key.endswith("image_projection"):
            torch.nn.init.normal_(weight, std=0.02)
    statistics = stats()
    if config.action_feature.shape != (A,):
        size = config.action_feature.shape
        statistics["action"] = {"mean": torch.ones(size), "std": torch.full(size, 2.0)}
    with _tokenizer_at(backbone, kind):
        processors = make_pre_post_processors(config, dataset_stats=statistics)
    checkpoint = folder / "pretrained_model"
    policy.save_pretrained(checkpoint)
    for processor in processors:
        processor.save_pretrained(checkpoint)
    return Made(checkpoint, cameras, False, True)


def make_relative_checkpoint(folder: Path) -> Made:
    """Save a pi0 that moves nothing and whose actions are relative to the state.

    Three joints and a gripper, which stays absolute; action statistics are mean 1 and
    deviation 2, and the denoised actions are the noise.
    """
    from lerobot.configs.types import FeatureType, PolicyFeature

    made = make_checkpoint(
        "pi0",
        folder,
        output_features={"action": PolicyFeature(FeatureType.ACTION, (4,))},
        use_relative_actions=True,
        relative_exclude_joints=["gripper"],
        action_feature_names=["x", "y", "z", "gripper"],
    )
    from safetensors.torch import load_file, save_file

    path = made.folder / "model.safetensors"
    weights = load_file(path)
    for name in ("weight", "bias"):
        weights[f"model.action_out_proj.{name}"].zero_()
    save_file(weights, path)
    return made


def make_tokenizer(folder: Path) -> None:
    """Save a byte-level tokenizer of 320 tokens at most."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    raw.train_from_iterator(TEXTS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.save_pretrained(folder)


def make_clip(folder: Path) -> None:
    """Save a CLIP of one narrow layer on each side."""
    from transformers import CLIPConfig, CLIPModel

    narrow = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text = {"vocab_size": 320, "max_position_embeddings": 16, "eos_token_id": 2}
    vision = {"image_size": 32, "patch_size": 16}
    config = CLIPConfig(
        text_config={**narrow, **text, "bos_token_id": 1, "pad_token_id": 0},
        vision_config={**narrow, **vision},
        projection_dim=16,
    )
    torch.manual_seed(3)
    CLIPModel(config).save_pretrained(folder)


@dataclass
class _NarrowGemma:
    width: int = 32
    depth: int = 2
    mlp_dim: int = 32
    num_heads: int = 8  # written into the training forward
    num_kv_heads: int = 1
    head_dim: int = 8


@contextmanager
def narrow_gemma() -> Iterator[None]:
    """Build PaliGemma and its expert narrow, while pi0 and pi05 are made or loaded."""
    from lerobot.policies.pi0 import modeling_pi0
    from lerobot.policies.pi05 import modeling_pi05

    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "projection_dim": 32,
    }

    def narrow(build):
        def make(config):
            text = getattr(config, "text_config", config)
            text.vocab_size = 320
            if text is not config:
                config._vocab_size = config.image_token_index = 320
                for name, value in vision.items():
                    setattr(config.vision_config, name, value)
            return build(config)

        return make

    names = ("PaliGemmaForConditionalGeneration", "GemmaForCausalLM")
    if lerobot_is_new():
        names = ("PaliGemmaForConditionalGenerationWithPiGemma", "PiGemmaForCausalLM")
    changes = {
        module: {
            "get_gemma_config": lambda variant: _NarrowGemma(),
            **{name: narrow(getattr(module, name)) for name in names},
        }
        for module in (modeling_pi0, modeling_pi05)
    }
    with (
        mock.patch.multiple(modeling_pi0, **changes[modeling_pi0]),
        mock.patch.multiple(modeling_pi05, **changes[modeling_pi05]),
    ):
        yield


@contextmanager
def _tokenizer_at(folder: Path, kind: str) -> Iterator[None]:
    """Let pi0's and pi05's processors find our tokenizer, whose name is fixed."""
    if not kind.startswith("pi0"):
        yield
        return
    module = importlib.import_module(f"lerobot.policies.{kind}.processor_{kind}")
    step = module.TokenizerProcessorStep

    def make(**options):
        return step(**{**options, "tokenizer_name": str(folder)})

    with mock.patch.object(module, "TokenizerProcessorStep", make):
        yield
