"""Contract of the actions that one embodiment takes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite
from typing import Any

from torch import Tensor

from torchrl_vla.execution.guard.action_limits import ActionLimits
from torchrl_vla.schema import (
    ActionGuardError,
    MetadataError,
    RobotDatasetMetadata,
    check_positive_int,
    describe_place,
)

_LISTED = 32  # bad values that an error spells out; it counts the rest

_SECRETS = ("password", "secret", "token", "credential", "api_key", "private_key")


@dataclass(frozen=True)
class EmbodimentContract:
    """Declare the actions that one embodiment takes, and refuse every other chunk.

    :meth:`check` refuses a chunk that is too short, too wide or not finite as a whole:
    nothing is padded, projected, clipped or dropped, because a robot cannot tell a
    repaired action from an intended one. ``ActionGuard(policy, contract)`` checks every
    chunk of a policy.

    Note:
        Limits are compared in the chunk's own dtype, so that a float32 action at the
        limit is within it.

    Args:
        embodiment_tag: name of the robot, e.g. ``"aloha"``.
        action_dim: ``A``.

    Keyword Args:
        action_horizon: ``H``; None = any number of actions.
        action_low: smallest legal action per dimension, in the robot's units.
        action_high: largest legal action per dimension.
        action_names: one per dimension, for the errors.
        metadata: facts about the robot for a run record; JSON-native.

    Raises:
        MetadataError: lists every contradiction.

    Examples:
        >>> import torch
        >>> contract = EmbodimentContract(
        ...     "pusht", 2, action_low=(0, 0), action_high=(512, 512)
        ... )
        >>> contract.check(torch.full((1, 2), 256.0)).shape
        torch.Size([1, 2])
        >>> contract.check(torch.tensor([[256.0, 600.0]]))
        Traceback (most recent call last):
        ...
        torchrl_vla.errors.ActionGuardError: EmbodimentContract 'pusht': ...
          - expected 0.0 .. 512.0 at step 0, dimension 1, got 600
        No action was sent: ...
    """

    embodiment_tag: str
    action_dim: int
    action_horizon: int | None = field(default=None, kw_only=True)
    action_low: tuple[float, ...] | None = field(default=None, kw_only=True)
    action_high: tuple[float, ...] | None = field(default=None, kw_only=True)
    action_names: tuple[str, ...] | None = field(default=None, kw_only=True)
    metadata: Mapping[str, Any] = field(default_factory=dict, kw_only=True, hash=False)

    def __post_init__(self) -> None:
        name = type(self).__name__
        check_positive_int(name, "action_dim", self.action_dim)
        if self.action_horizon is not None:
            check_positive_int(name, "action_horizon", self.action_horizon)
        for limit in ("action_low", "action_high"):
            if vars(self)[limit] is not None:
                values = tuple(map(float, vars(self)[limit]))
                object.__setattr__(self, limit, values)
        if self.action_names is not None:
            object.__setattr__(self, "action_names", tuple(self.action_names))
        problems = list(self._problems())
        if problems:
            raise MetadataError(f"{name}: " + " ".join(problems))
        object.__setattr__(self, "metadata", json.loads(json.dumps(self.metadata)))

    @classmethod
    def from_metadata(
        cls, metadata: RobotDatasetMetadata, *, horizon: int | None = None
    ) -> EmbodimentContract:
        """Take size, limits and names from the metadata of an environment or dataset.

        Raises:
            MetadataError: the metadata does not declare ``action_dim``.
        """
        if metadata.action_dim is None:
            raise MetadataError(
                "EmbodimentContract: expected metadata with 'action_dim', got "
                f"{metadata.dataset_id!r} without. Declare it."
            )
        about = {
            "dataset_id": metadata.dataset_id,
            "action_units": metadata.action_units,
            "action_reference": metadata.action_reference,
            "control_frequency_hz": metadata.control_frequency_hz,
        }
        return cls(
            metadata.embodiment_id or metadata.dataset_id,
            metadata.action_dim,
            action_horizon=horizon,
            action_low=metadata.action_low,
            action_high=metadata.action_high,
            action_names=metadata.action_names,
            metadata={
                name: list(value) if isinstance(value, tuple) else value
                for name, value in about.items()
                if value is not None
            },
        )

    def check(self, chunk: Tensor, embodiment_tag: str | None = None) -> Tensor:
        """Return the chunk as it is, or refuse it.

        One number is read back from the chunk's device; the rest only when it is
        refused.

        Args:
            chunk: float ``[*B, H, A]``, in the robot's units.
            embodiment_tag: the robot that the chunk was made for; None = not said.

        Raises:
            ActionGuardError: lists every violation.
        """
        found = list(self._outer_violations(chunk, embodiment_tag))
        if found or not self.limits.legal(chunk).all().item():
            found += self.describe_illegal(chunk)
            raise self.refusal("a chunk within the contract", found)
        return chunk

    def check_outside(self, chunk: Tensor, *, any_horizon: bool = False) -> None:
        """Refuse a chunk of another type or shape, whatever its numbers are.

        Args:
            chunk: float ``[*B, H, A]``.
            any_horizon: True = ``H`` is not compared.

        Raises:
            ActionGuardError: lists every violation.
        """
        found = list(self._outer_violations(chunk, None, any_horizon))
        if found:
            found += self.describe_illegal(chunk)
            raise self.refusal("a chunk within the contract", found)

    def refusal(self, expected: str, found: Sequence[str]) -> ActionGuardError:
        """Make the error of a refused chunk, with a list of its violations."""
        return ActionGuardError(
            f"EmbodimentContract {self.embodiment_tag!r}: expected {expected}, got "
            f"{len(found)} violation(s):\n  - "
            + "\n  - ".join(found)
            + "\nNo action was sent: the robot goes on with its last command. Look at "
            "the policy's output and at the statistics that denormalize it, or correct "
            "the contract."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the contract for a run record, as JSON-native values.

        Entries of ``metadata`` whose name marks them as secret (a password,
        token, key or credential) are withheld, at any depth.
        """
        return {
            "embodiment_tag": self.embodiment_tag,
            "action_dim": self.action_dim,
            "action_horizon": self.action_horizon,
            "action_low": _to_list(self.action_low),
            "action_high": _to_list(self.action_high),
            "action_names": _to_list(self.action_names),
            "metadata": _withhold_secrets(self.metadata),
        }

    def _problems(self) -> Iterator[str]:
        tag, low, high = self.embodiment_tag, self.action_low, self.action_high
        if not isinstance(tag, str) or not tag.strip():
            yield f"expected a name at 'embodiment_tag', got {tag!r}."
        for name in ("action_low", "action_high", "action_names"):
            value = vars(self)[name]
            if value is not None and len(value) != self.action_dim:
                yield (
                    f"expected action_dim={self.action_dim} values at {name!r}, got "
                    f"{len(value)}."
                )
        if (low is None) != (high is None):
            yield "expected both of 'action_low' and 'action_high' or none."
        elif low is not None and high is not None:
            # Both are reported above when their lengths differ.
            pairs = enumerate(zip(low, high, strict=False))
            bad = [d for d, (a, b) in pairs if not (a < b and isfinite(b - a))]
            if bad:
                yield (
                    "expected finite action_low < action_high, got low="
                    f"{low}, high={high} (dimensions {bad})."
                )
        if not _is_json_native(self.metadata):
            yield (
                "expected JSON-native values at 'metadata' (dict, list, str, int, "
                f"finite float, bool, None), got {self.metadata!r}."
            )

    @cached_property
    def limits(self) -> ActionLimits:
        """The range of each dimension, as tensors."""
        return ActionLimits(self.action_low, self.action_high)

    def _outer_violations(
        self, chunk: Tensor, tag: str | None, any_horizon: bool = False
    ) -> Iterator[str]:
        if tag is not None and tag != self.embodiment_tag:
            yield f"expected embodiment_tag {self.embodiment_tag!r}, got {tag!r}"
        if not isinstance(chunk, Tensor):
            yield f"expected a tensor [*B, H, A], got {type(chunk).__name__}"
            return
        if not chunk.is_floating_point():
            yield f"expected floats, got {chunk.dtype}"
        if chunk.ndim < 2:
            yield f"expected a chunk [*B, H, A], got {list(chunk.shape)}"
            return
        length, size = chunk.shape[-2:]
        wanted = None if any_horizon else self.action_horizon
        if length != wanted and (wanted or not length):
            horizon = wanted or ">= 1"
            yield f"expected horizon H = {horizon}, got {length}"
        if size != self.action_dim:
            yield f"expected action dimension A = {self.action_dim}, got {size}"

    def describe_illegal(
        self, chunk: Tensor, legal: Tensor | None = None
    ) -> Iterator[str]:
        """Describe each illegal number of a chunk with its place, for an error.

        Args:
            chunk: what was refused.
            legal: bool ``[*B, H, A]``; None = what the limits say.
        """
        if not isinstance(chunk, Tensor) or not chunk.is_floating_point():
            return
        chunk = chunk.detach()
        comparable = chunk.ndim >= 2 and chunk.shape[-1] == self.action_dim
        if legal is None:
            legal = self.limits.legal(chunk) if comparable else chunk.isfinite()
        places = (~legal).nonzero().tolist()
        for place in places[:_LISTED]:
            value = chunk[tuple(place)].item()
            if comparable:
                yield self._describe(place, value)
            else:
                yield f"expected finite values, got {value} at {place}"
        if len(places) > _LISTED:
            yield f"and {len(places) - _LISTED} more values"

    def _describe(self, place: list[int], value: float) -> str:
        dim = place[-1]
        where = describe_place(place)
        if self.action_names is not None:
            where += f" ({self.action_names[dim]})"
        low, high = self.action_low, self.action_high
        if not isfinite(value) or low is None or high is None:
            return f"expected a finite value at {where}, got {value}"
        return f"expected {low[dim]} .. {high[dim]} at {where}, got {value:.9g}"


def _to_list(values: tuple[Any, ...] | None) -> list[Any] | None:
    return None if values is None else list(values)


def _is_json_native(value: Any) -> bool:
    if isinstance(value, Mapping):
        return type(value) is dict and all(
            isinstance(key, str) and _is_json_native(entry)
            for key, entry in value.items()
        )
    if isinstance(value, list):
        return all(map(_is_json_native, value))
    if isinstance(value, float):
        return isfinite(value)
    return value is None or isinstance(value, (str, int))


def _withhold_secrets(value: Any) -> Any:
    if isinstance(value, list):
        return [_withhold_secrets(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    return {
        key: "<withheld>"
        if any(word in key.lower() for word in _SECRETS)
        else _withhold_secrets(entry)
        for key, entry in value.items()
    }
