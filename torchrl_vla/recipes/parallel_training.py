"""Ranks of a training: their agreement, and the policy that they train."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

from torch import nn
from torchrl.data import ReplayBuffer

from torchrl_vla.distributed import Ranks, copy_full_weights, is_sharded, shard
from torchrl_vla.errors import SettingsError
from torchrl_vla.evaluation import hash_weights, package_versions
from torchrl_vla.recipes.training_settings import TrainingSettings

Policy = TypeVar("Policy", bound=nn.Module)


def check_ranks(
    ranks: Ranks,
    policy: nn.Module,
    buffer: ReplayBuffer,
    settings: TrainingSettings,
    callback: Callable[[int], None] | None,
) -> None:
    """Refuse ranks that would not train one policy, or could not share a batch."""
    if ranks.is_alone:
        return
    caller = "run_training"
    if callback is not None and is_sharded(policy):
        raise SettingsError(
            f"{caller}: expected no callback for a sharded policy, which acts on all "
            "ranks together or not at all, got one. Evaluate the trained policy, or "
            "train with parallel='ddp'."
        )
    if settings.max_seconds is not None:
        raise SettingsError(
            f"{caller}: expected no max_seconds on {ranks.count} ranks, whose clocks "
            f"differ, got {settings.max_seconds}. Pass steps."
        )
    check_agreement(
        caller,
        ranks,
        {"settings": settings.as_values(), "number of frames": len(buffer)},
        {"initial weights": [policy]},
    )


def check_agreement(
    caller: str,
    ranks: Ranks,
    values: Mapping[str, object],
    modules: Mapping[str, Sequence[nn.Module]],
) -> None:
    """Refuse ranks whose library versions, values or weights differ."""
    remedy = "Start every rank with the same command and environment."
    for what, value in {"library versions": package_versions(), **values}.items():
        ranks.agree(caller, what, value, remedy)
    remedy = "Seed PyTorch alike on every rank before the policy is made."
    for what, trained in modules.items():
        hashes = [hash_weights(module)[:12] for module in trained]
        ranks.agree(caller, what, hashes, remedy)


@contextmanager
def parallel_copy(policy: Policy, settings: TrainingSettings) -> Iterator[Policy]:
    """Yield what the ranks train: the policy itself, or with "fsdp" a sharded copy.

    The loss and the optimizer are made from it. At the end the policy holds its
    weights, on every rank.

    Args:
        policy: of the same weights on every rank.
        settings: ``parallel`` decides.

    Raises:
        SettingsError: "fsdp" without a process group.
    """
    if settings.parallel == "ddp":
        yield policy
        return
    copied = copy.deepcopy(policy)
    shard(copied)
    yield copied
    copy_full_weights(copied, policy)
    policy.eval()
