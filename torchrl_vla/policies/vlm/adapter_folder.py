"""Folder of an adapter: what was trained, and the base that it was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from torch import Tensor

from torchrl_vla._internal.durable_files import write_json, writing_folder
from torchrl_vla._internal.extras import import_extra
from torchrl_vla._internal.file_origin import Origin
from torchrl_vla._internal.json_source import read_json
from torchrl_vla.policies.vlm.adaptation import base_identity
from torchrl_vla.policies.vlm.vlm_folder import is_of_head
from torchrl_vla.policies.vlm.vlm_policy import VLMPolicy
from torchrl_vla.schema import SchemaError

_CONFIG, _WEIGHTS = "adapter.json", "adapter.safetensors"
_REMEDY = "Write the adapter again with save_adapter."


class _StoredAdapter(TypedDict):
    base: str
    policy: str


def save_adapter(folder: str | Path, policy: VLMPolicy) -> Path:
    """Write adapters and head of a policy, without the base under them.

    Args:
        folder: is created if need be.
        policy: whose trunk has adapters, or is frozen.

    Raises:
        SchemaError: the base itself is trained.
    """
    if policy.trunk.config.lora is None and not policy.trunk.config.frozen:
        raise SchemaError(
            "save_adapter: expected a policy whose base is frozen, got one that trains "
            "it: without the base's weights nothing could be read back. Build the "
            "trunk with TrunkConfig(lora=LoRAConfig()), or use save_policy."
        )
    folder = Path(folder)
    safetensors = import_extra("safetensors.torch", "vlm", "save_adapter")
    stored = {
        "base": base_identity(policy.trunk.model),
        "policy": type(policy).__name__,
    }
    with writing_folder(folder, _CONFIG) as partial:
        weights = {k: v.contiguous().clone() for k, v in _trained(policy).items()}
        safetensors.save_file(weights, partial / _WEIGHTS)
        write_json(partial / _CONFIG, stored)
    return folder


def load_adapter(folder: str | Path, policy: VLMPolicy) -> VLMPolicy:
    """Read adapters and head into a policy that was built on the same base.

    Args:
        folder: that :func:`save_adapter` wrote.
        policy: with the same adapters and head; is changed and returned.

    Raises:
        SchemaError: the base, the adapters or the head are others.
    """
    folder = Path(folder)
    stored = read_json("load_adapter", folder / _CONFIG, _StoredAdapter, remedy=_REMEDY)
    here = base_identity(policy.trunk.model)
    if stored["base"] != here:
        raise SchemaError(
            f"load_adapter: expected an adapter of this base, sha256 {here[:12]}, in "
            f"{folder}, got one of {stored['base'][:12]}. Load the base that it was "
            "trained on, or train an adapter for this one."
        )
    safetensors = import_extra("safetensors.torch", "vlm", "load_adapter")
    with Origin.of_file("load_adapter", folder / _WEIGHTS, _REMEDY).reading(
        "safetensors"
    ):
        weights: dict[str, Tensor] = safetensors.load_file(folder / _WEIGHTS)
    own = _trained(policy)
    different = {
        name
        for name in {**own, **weights}
        if name not in own
        or name not in weights
        or own[name].shape != weights[name].shape
    }
    if different:
        raise SchemaError(
            f"load_adapter: expected adapters and head of this "
            f"{type(policy).__name__}, got those of a {stored['policy']} that differs "
            f"at {sorted(different)[:5]}. Build it with the same LoRAConfig, "
            "chunk_size and action_dim."
        )
    policy.load_state_dict(weights, strict=False)
    return policy


def _trained(policy: VLMPolicy) -> dict[str, Tensor]:
    return {n: v.detach() for n, v in policy.state_dict().items() if is_of_head(n)}
