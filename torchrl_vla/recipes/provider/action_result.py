"""Actions with their provenance."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

_PREVIEW = 8


@dataclass(frozen=True)
class RawActionSummary:
    """Bounded description of a policy's own actions, for a run record.

    Args:
        type: of the container.
        shape: where it is rectangular; None = it is ragged.
        preview: the first numbers, at most eight.
        count: of all numbers; None = ragged.
    """

    type: str
    shape: tuple[int, ...] | None
    preview: tuple[float, ...]
    count: int | None


def summarize_actions(actions: Any) -> RawActionSummary:
    """Describe actions in a few numbers.

    Args:
        actions: a tensor, an array, or lists of numbers.

    Examples:
        >>> summarize_actions(torch.zeros(2, 500, 7)).shape
        (2, 500, 7)
        >>> summarize_actions([[1.0, 2.0], [3.0]]).preview
        (1.0, 2.0, 3.0)
    """
    name = type(actions).__name__
    try:
        values = torch.as_tensor(actions).detach()
    except (ValueError, TypeError):
        return RawActionSummary(name, None, tuple(_flat(actions))[:_PREVIEW], None)
    first = values.reshape(-1)[:_PREVIEW].double().tolist()
    return RawActionSummary(name, tuple(values.shape), tuple(first), values.numel())


def _flat(values: Any) -> list[float]:
    if isinstance(values, list | tuple):
        return [number for value in values for number in _flat(value)]
    return [float(values)]


@dataclass(frozen=True, eq=False)
class ActionResult:
    """Actions for a robot, and where they come from.

    Args:
        actions: of the translator, ``[*B, H', A']``; of ``num_candidates`` the chosen.
        raw_actions: of the policy, as they were, ``[*B, H, A]``.
        candidates: of the translator, ``[N, H', A']``; None = one was made.
        mode: of the request.
        embodiment_tag: of the contract.
        loader_mode: how the provider got its policy.
        policy: the policy's class, or where it was loaded from.
        latency_s: seconds of the policy's call.
        raw_action_summary: of ``raw_actions``.
        translator_contract: of the translator, without secrets.
        scores: costs of the candidates; the lowest was chosen.
    """

    actions: Tensor
    raw_actions: Tensor
    mode: str
    embodiment_tag: str
    loader_mode: str
    policy: str
    latency_s: float
    raw_action_summary: RawActionSummary
    translator_contract: dict[str, Any]
    candidates: Tensor | None = None
    scores: tuple[float, ...] | None = None

    @property
    def metadata(self) -> dict[str, Any]:
        """Everything but the tensors, as JSON-native values."""
        tensors = ("actions", "raw_actions", "candidates")
        values = {name: v for name, v in vars(self).items() if name not in tensors}
        values["raw_action_summary"] = asdict(self.raw_action_summary)
        values["action_shape"] = list(self.actions.shape)
        values["num_candidates"] = (
            1 if self.candidates is None else len(self.candidates)
        )
        return json.loads(json.dumps(values))

    def to_json(self) -> str:
        """Return the metadata as JSON text."""
        return json.dumps(self.metadata, indent=2, sort_keys=True)
