"""LeRobot's own training losses as a TorchRL loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.objectives import LossModule

from torchrl_vla.objectives.pad_masks import read_pad_mask, read_target
from torchrl_vla.schema import ACTION_IS_PAD_KEY, SAMPLE_WEIGHT_KEY, SchemaError


class TrainableLeRobotPolicy(Protocol):
    """Members of ``LeRobotPolicyWrapper`` that a loss uses.

    ``policy`` is LeRobot's, ``config`` its configuration; ``wrapper`` is itself, or
    the wrapper inside a ``LeRobotFlowPolicy``.
    """

    wrapper: TrainableLeRobotPolicy
    policy: nn.Module
    config: Any
    chunk_key: NestedKey
    in_keys: list[NestedKey]
    masks_padding: bool
    target_steps: range

    def make_training_batch(self, tensordict: TensorDictBase) -> dict[str, Any]:
        """Return the preprocessed batch of LeRobot's own training step."""


class LeRobotLoss(LossModule):
    """Train a LeRobot policy with its own loss, through its own preprocessor.

    The number is that of LeRobot's training step on the same batch: L1 and KL for ACT,
    the noise's error for Diffusion, flow matching for SmolVLA, and so on. Targets are
    in robot space; the preprocessor normalizes them.

    A policy in evaluation mode has another loss (ACT leaves its KL out), so it is
    refused while gradients are recorded. A policy whose loss counts padded actions is
    refused unless ``train_on_padding``; SmolVLA in LeRobot 0.4.4, which reads the mask
    under a misspelt name, gets it under that name.

    **Reads** what the policy reads; ``action_chunk`` float ``[*B, H, A]`` in robot
    space, where ``H`` and its first step are ``policy.target_steps``;
    ``action_is_pad`` bool ``[*B, H]``, True = padded. **Writes** ``loss_lerobot``, a
    scalar, and the policy's log entries under ``log``, without gradient.

    Note:
        Diffusion and SmolVLA read the whole target, padding included, to predict its
        valid part; only the loss leaves the padding out.

    Args:
        policy: ``LeRobotPolicyWrapper`` around a policy of LeRobot's, or a
            ``LeRobotFlowPolicy``.

    Keyword Args:
        train_on_padding: True = a policy whose loss does not know the mask learns the
            repeated last action, as in LeRobot's own training.

    Raises:
        SchemaError: the policy's loss counts padding and ``train_on_padding`` is
            False; it needs rewards or later observations; it is in evaluation mode;
            the mask is no bool ``[*B, H]`` with a False in it; the batch has a
            ``sample_weight``, which LeRobot's losses do not know.
        MissingKeyError: the targets or the mask are not there.
    """

    @dataclass
    class _AcceptedKeys:
        """The key of the padding mask; that of the targets is the policy's."""

        pad_mask: NestedKey = ACTION_IS_PAD_KEY

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    out_keys = ["loss_lerobot"]

    def __init__(
        self, policy: TrainableLeRobotPolicy, *, train_on_padding: bool = False
    ) -> None:
        super().__init__()
        policy = policy.wrapper
        config, name = policy.config, type(policy.policy).__name__
        if config is None:
            raise SchemaError(
                "LeRobotLoss: expected a LeRobotPolicyWrapper around a policy of "
                f"LeRobot's, got one around {name}. Use BCLoss to clone chunks."
            )
        if config.reward_delta_indices is not None:
            raise SchemaError(
                f"LeRobotLoss: expected a policy trained on actions alone, got {name}, "
                "which learns from rewards and later observations. Train it with "
                "lerobot-train."
            )
        if not (policy.masks_padding or train_on_padding):
            raise SchemaError(
                f"LeRobotLoss: expected a loss that leaves padded actions out, got "
                f"{name}, which counts them. Load it with overrides="
                "{'do_mask_loss_for_padding': True} if it has that field, or pass "
                "train_on_padding=True to learn the repeated last action, as LeRobot "
                "does."
            )
        self.policy = policy
        self.train_on_padding = train_on_padding

    @property
    def in_keys(self) -> list[NestedKey]:
        """Keys that the policy reads, the targets and their mask."""
        return [*self.policy.in_keys, self.policy.chunk_key, self.tensor_keys.pad_mask]

    def _forward_value_estimator_keys(self, **kwargs: Any) -> None:
        pass  # there is no value

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the loss of a batch and the policy's log entries."""
        network = self.policy.policy
        if torch.is_grad_enabled() and not network.training:
            raise SchemaError(
                f"LeRobotLoss: expected {type(network).__name__} in training mode, got "
                "evaluation mode, in which its loss is another. Call loss.train(), or "
                "use torch.no_grad() for a validation loss."
            )
        if tensordict.get(SAMPLE_WEIGHT_KEY, None) is not None:
            raise SchemaError(
                "LeRobotLoss: expected samples of equal weight, got a batch with "
                f"{SAMPLE_WEIGHT_KEY!r}: LeRobot reduces its losses itself. Sample "
                "frames in proportion to their weights, or exclude it from the batch."
            )
        target = read_target(tensordict, self.policy.chunk_key, "LeRobotLoss")
        own_step = -self.policy.target_steps[0]
        pad_key = self.tensor_keys.pad_mask
        read_pad_mask(tensordict, pad_key, target, "LeRobotLoss", own_step)
        batch = self.policy.make_training_batch(tensordict)
        try:
            loss, log = network(batch)
        except TypeError as error:
            if network.training:
                raise
            raise SchemaError(  # LeRobot 0.4.4's ACT
                f"LeRobotLoss: expected {type(network).__name__} to have a loss in "
                f"evaluation mode, got TypeError: {error}. Call loss.train(), also for "
                "a validation loss."
            ) from error
        out = TensorDict({"loss_lerobot": loss})
        for name, value in (log or {}).items():
            if isinstance(value, Tensor):
                out["log", name] = value.detach()
            else:  # a number, or pi0's list of one per dimension
                out["log", name] = torch.tensor(value, dtype=torch.float32)
        return out
