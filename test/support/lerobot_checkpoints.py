"""Tiny checkpoints of LeRobot's policies, made here because nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tensordict import NonTensorStack, TensorDict

A, S, E, SIDE = 7, 5, 6, 48
TEXTS = ("pick up the red cube", "open the drawer")


def lerobot_is_new() -> bool:
    import lerobot

    return not lerobot.__version__.startswith("0.4")


def stats() -> dict[str, dict[str, torch.Tensor]]:
    """Statistics that change every number they touch."""
    out = {}
    sizes = {
        "action": (A,),
        "observation.state": (S,),
        "observation.environment_state": (E,),
        "observation.image": (3, 1, 1),
        "observation.images.front": (3, 1, 1),
        "observation.images.wrist": (3, 1, 1),
    }
    for seed, (name, size) in enumerate(sizes.items()):
        generator = torch.Generator().manual_seed(seed)
        mean = torch.rand(size, generator=generator)
        std = 0.5 + torch.rand(size, generator=generator)
        low, high = mean - 2 * std, mean + 3 * std
        out[name] = {"mean": mean, "std": std, "min": low, "max": high}
        out[name] |= {"q01": low + 0.1, "q99": high - 0.1}
    return out


@dataclass(frozen=True)
class Made:
    """A checkpoint on disk and what it reads."""

    folder: Path
    cameras: tuple[str, ...]
    environment_state: bool
    reads_text: bool


def features(cameras: tuple[str, ...], environment_state: bool) -> dict[str, Any]:
    from lerobot.configs.types import FeatureType, PolicyFeature

    inputs = {"observation.state": PolicyFeature(FeatureType.STATE, (S,))}
    for camera in cameras:
        size = (3, SIDE, SIDE)
        inputs[camera] = PolicyFeature(FeatureType.VISUAL, size)
    if environment_state:
        name = "observation.environment_state"
        inputs[name] = PolicyFeature(FeatureType.ENV, (E,))
    outputs = {"action": PolicyFeature(FeatureType.ACTION, (A,))}
    return {
        "input_features": inputs,
        "output_features": outputs,
        "device": "cpu",
        "push_to_hub": False,
    }


TWO = ("observation.images.front", "observation.images.wrist")
ONE = ("observation.image",)
ACT = {
    "chunk_size": 10,
    "n_action_steps": 4,
    "dim_model": 32,
    "n_heads": 2,
    "dim_feedforward": 32,
    "n_encoder_layers": 1,
    "n_vae_encoder_layers": 1,
    "latent_dim": 4,
    "pretrained_backbone_weights": None,
}
DIFFUSION = {
    "n_obs_steps": 2,
    "horizon": 8,
    "n_action_steps": 3,
    "down_dims": (16, 32),
    "n_groups": 4,
    "diffusion_step_embed_dim": 16,
    "num_inference_steps": 3,
    "drop_n_last_frames": 0,
}
# name: (policy type, cameras, environment state, configuration)
RECIPES: dict[str, tuple[str, tuple[str, ...], bool, dict[str, Any]]] = {
    "act": ("act", (), True, ACT),
    "act-cameras": ("act", TWO, False, ACT),
    "diffusion": ("diffusion", (), True, DIFFUSION),
    "diffusion-camera": (
        "diffusion",
        ONE,
        False,
        {
            **DIFFUSION,
            "pretrained_backbone_weights": None,
            "crop_shape": None,
            "spatial_softmax_num_keypoints": 4,
            "use_group_norm": True,
        },
    ),
    "vqbet": (
        "vqbet",
        ONE,
        False,
        {
            "n_obs_steps": 3,
            "n_action_pred_token": 2,
            "action_chunk_size": 3,
            "gpt_block_size": 32,
            "gpt_input_dim": 16,
            "gpt_output_dim": 16,
            "gpt_n_layer": 1,
            "gpt_n_head": 2,
            "gpt_hidden_dim": 16,
            "vqvae_n_embed": 4,
            "vqvae_embedding_dim": 8,
            "vqvae_enc_hidden_dim": 8,
            "crop_shape": None,
            "spatial_softmax_num_keypoints": 4,
            "pretrained_backbone_weights": None,
            "use_group_norm": True,
        },
    ),
    "tdmpc": (
        "tdmpc",
        ONE,
        False,
        {
            "n_gaussian_samples": 16,
            "n_pi_samples": 4,
            "n_elites": 4,
            "cem_iterations": 2,
            "mlp_dim": 16,
            "latent_dim": 8,
            "image_encoder_hidden_dim": 4,
            "state_encoder_hidden_dim": 16,
        },
    ),
    "smolvla": (
        "smolvla",
        TWO,
        False,
        {
            "chunk_size": 10,
            "n_action_steps": 5,
            "num_steps": 3,
            "max_state_dim": 16,
            "max_action_dim": 16,
            "resize_imgs_with_padding": (128, 128),
            "load_vlm_weights": False,
            "num_vlm_layers": 2,
            "tokenizer_max_length": 24,
        },
    ),
}
RECIPES["tdmpc-steps"] = (
    "tdmpc",
    ONE,
    False,
    {**RECIPES["tdmpc"][3], "n_action_repeats": 1, "n_action_steps": 3},
)


def make_policy(name: str, vlm: Path | None = None, **changes: Any) -> Any:
    """Make an untrained policy whose weights depend on nothing but its recipe."""
    from lerobot.policies.factory import get_policy_class, make_policy_config

    kind, cameras, environment_state, options = RECIPES[name]
    options = {**options, **changes}
    if kind == "smolvla":
        options["vlm_model_name"] = str(vlm)
    config = make_policy_config(kind, **features(cameras, environment_state), **options)
    torch.manual_seed(7)
    policy = get_policy_class(kind)(config).eval()
    if kind == "vqbet":
        policy.vqbet.action_head.vqvae_model.discretized.fill_(True)
    return policy


def make_processors(policy: Any) -> tuple[Any, Any]:
    from lerobot.policies.factory import make_pre_post_processors

    return make_pre_post_processors(policy.config, dataset_stats=stats())


def observe(made: Made, steps: int, rows: int, seed: int = 0) -> list[TensorDict]:
    """Return what ``rows`` robots see at each of ``steps`` steps, in our schema."""
    generator = torch.Generator().manual_seed(seed)
    out = []
    for step in range(steps):
        observation: dict[str, Any] = {
            "state": torch.randn(rows, S, generator=generator)
        }
        for camera in made.cameras:
            size = (rows, 3, SIDE, SIDE)
            image = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
            path = camera.split(".")[2:]
            if path:
                observation.setdefault("image", {})[path[0]] = image
            else:
                observation["image"] = image
        if made.environment_state:
            value = torch.randn(rows, E, generator=generator)
            observation["environment_state"] = value
        td = TensorDict({"observation": observation}, [rows])
        td["language_instruction"] = NonTensorStack(
            *[TEXTS[row % 2] for row in range(rows)]
        )
        td["is_init"] = torch.full((rows, 1), step == 0)
        out.append(td)
    return out


def to_lerobot_batch(td: TensorDict) -> dict[str, Any]:
    """Return what LeRobot's own loop would be given for an observation."""
    batch: dict[str, Any] = {"task": td["language_instruction"]}
    for key, value in td["observation"].items(True, True):
        path = (key,) if isinstance(key, str) else key
        if path[0] == "image":
            name = "observation.images." + path[1] if path[1:] else "observation.image"
            batch[name] = value.to(torch.float32) / 255
        else:
            batch[f"observation.{path[0]}"] = value
    return batch
