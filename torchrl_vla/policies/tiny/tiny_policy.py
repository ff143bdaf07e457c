"""What the tiny policies have in common beside their heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tensordict import NestedKey

from torchrl_vla.policies.policy_folder import write_policy
from torchrl_vla.policies.tiny.backbone import TinyBackbone
from torchrl_vla.schema import InstructionTable

_BACKBONE = (
    "state_dim",
    "cameras",
    "hidden",
    "depth",
    "text_dim",
    "text_max_bytes",
)
_CONFIGURABLE = (
    "action_dim",
    "chunk_size",
    *_BACKBONE,
    "image_key",
    "state_key",
    "instruction_key",
)


class TinyPolicy:
    """A backbone, its instructions and a folder; a head class stands beside it."""

    backbone: TinyBackbone
    config: dict[str, Any]
    state_key: NestedKey | None

    @property
    def instructions(self) -> InstructionTable | None:
        """The table that gives instruction ids their texts.

        A loss copies its policy: set the table before building the loss.
        """
        return self.backbone.instructions

    @instructions.setter
    def instructions(self, table: InstructionTable | None) -> None:
        self.backbone.instructions = table

    def to_folder(self, folder: str | Path) -> None:
        """Write ``config.json``, ``weights.pt`` and ``instructions.json``.

        Raises:
            ValueError: the policy has not seen a state yet (``state_dim=None``).
        """
        config = {**self.config, "state_dim": self._state_dim()}
        write_policy(folder, self, config, self.instructions)

    def _state_dim(self) -> int | None:
        return None if self.state_key is None else self.backbone.state.in_features


def read_keys(
    cameras: tuple[str, ...] | None,
    image_key: NestedKey,
    state_key: NestedKey | None,
    instruction_key: NestedKey,
) -> dict[str, NestedKey | None]:
    """Return the keys that a policy reads: no images for one without cameras."""
    return {
        "image_key": None if cameras == () else image_key,
        "state_key": state_key,
        "instruction_key": instruction_key,
    }


def make_backbone(
    out_dim: int, arguments: dict[str, Any], keys: dict[str, NestedKey | None]
) -> TinyBackbone:
    """Return the backbone that a policy's constructor asks for.

    Args:
        out_dim: size of its output.
        arguments: the constructor's ``locals()``.
        keys: of :func:`read_keys`.
    """
    options = {name: arguments[name] for name in _BACKBONE}
    return TinyBackbone(out_dim, **options, **keys)


def json_config(arguments: dict[str, Any], *more: str) -> dict[str, Any]:
    """Return the constructor's arguments that a JSON file can hold.

    Args:
        arguments: the constructor's ``locals()``.
        *more: names beside those that every tiny policy has.
    """
    return {name: arguments[name] for name in (*_CONFIGURABLE, *more)}
