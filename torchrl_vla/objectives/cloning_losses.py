"""Registry of the losses that clone demonstrations, by the name a policy gives."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from tensordict.nn import TensorDictModuleBase
from torchrl.objectives import LossModule

from torchrl_vla.objectives.bc import BCLoss
from torchrl_vla.objectives.diffusion_bc import DiffusionBCLoss
from torchrl_vla.objectives.flow_matching import FlowMatchingLoss
from torchrl_vla.objectives.lerobot_loss import LeRobotLoss
from torchrl_vla.objectives.token_bc import TokenBCLoss
from torchrl_vla.schema import SchemaError


@dataclass(frozen=True)
class CloningOptions:
    """Options of the cloning losses that have some.

    Args:
        loss_function: of :class:`BCLoss`, for heads that predict a chunk.
        num_samples: times and noises per frame, for heads that denoise. The observation
            is encoded once for all of them; with one, the gradient is too noisy for a
            short training.
    """

    loss_function: str = "l1"
    num_samples: int = 8


#: The losses by name; each is called with a policy and the options.
CLONING_LOSSES: dict[
    str, Callable[[TensorDictModuleBase, CloningOptions], LossModule]
] = {
    "chunk": lambda policy, options: BCLoss(
        policy, loss_function=options.loss_function
    ),
    "tokens": lambda policy, options: TokenBCLoss(policy),
    "flow": lambda policy, options: FlowMatchingLoss(
        policy, num_samples=options.num_samples
    ),
    "diffusion": lambda policy, options: DiffusionBCLoss(
        policy, num_samples=options.num_samples
    ),
    # LeRobot's losses are those of a network in training mode.
    "lerobot": lambda policy, options: LeRobotLoss(policy).train(),
}


def cloning_loss(
    policy: TensorDictModuleBase,
    name: str,
    options: CloningOptions = CloningOptions(),
) -> LossModule:
    """Make the loss that clones demonstrations into a policy.

    Args:
        policy: trained by the loss.
        name: one of :data:`CLONING_LOSSES`; or ``"module:Class"``, a ``LossModule`` of
            the user's that is built from the policy and writes one loss.
        options: for the losses that have options.

    Raises:
        SchemaError: there is no such loss.

    Examples:
        >>> from tensordict.nn import TensorDictModule
        >>> policy = TensorDictModule(lambda x: x, ["state"], ["action_chunk"])
        >>> type(cloning_loss(policy, "chunk")).__name__
        'BCLoss'
    """
    if name in CLONING_LOSSES:
        return CLONING_LOSSES[name](policy, options)
    module, _, attribute = name.partition(":")
    try:
        loss_class = vars(importlib.import_module(module))[attribute]
    except (ImportError, KeyError, ValueError) as error:
        raise SchemaError(
            f"cloning_loss: expected one of {sorted(CLONING_LOSSES)}, or "
            f"'module:Class' of a LossModule, as cloning_loss of "
            f"{type(policy).__name__}, got {name!r} ({error})."
        ) from error
    return loss_class(policy)
