"""A flow policy of LeRobot's that knows how likely its chunks were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import InteractionType
from tensordict.nn.probabilistic import interaction_type
from torch import Tensor

from torchrl_vla.policies.chunk_distribution import sum_elements
from torchrl_vla.policies.denoising.flow_noise import (
    FlowNoise,
    read_noise,
    write_noise,
)
from torchrl_vla.policies.lerobot.load.registry import KINDS
from torchrl_vla.policies.lerobot.run.flow_distribution import LeRobotFlowDistribution
from torchrl_vla.policies.lerobot.run.flow_prefix import encode_prefix
from torchrl_vla.policies.lerobot.run.outputs import pass_boundary
from torchrl_vla.policies.lerobot.run.policy_wrapper import LeRobotPolicyWrapper
from torchrl_vla.policies.lerobot.run.pretrained import PretrainedPolicy
from torchrl_vla.policies.stochastic_policy import OutputKeys, StochasticVLAWrapper
from torchrl_vla.schema import (
    DENOISING_PATH_KEY,
    ELEMENT_LOG_PROBS_KEY,
    LOG_PROBS_KEY,
    InstructionTable,
    SchemaError,
    check_positive_int,
)

_STATE = "observation.state"
#: What to do with a policy that does not flow.
_INSTEAD = {
    "act": "It regresses its chunk; a head of that kind with a likelihood is "
    "TinyGaussianVLA.",
    "diffusion": "It denoises by diffusion; a head of that kind with a likelihood is "
    "TinyDiffusionVLA.",
    "multi_task_dit": "It denoises by diffusion; a head of that kind with a likelihood "
    "is TinyDiffusionVLA.",
    "vqbet": "It chooses codes of a codebook; a head that chooses tokens is "
    "TinyTokenVLA.",
    "tdmpc": "It plans with a world model of its own: train it with lerobot-train.",
    "xvla": "Its flow was not exercised here.",
}
_CLONE = "To go on cloning it, LeRobotLoss takes it as it is."


class LeRobotFlowPolicy(StochasticVLAWrapper):
    """Let SmolVLA, pi0 or pi0.5 choose chunks at random and say how likely they were.

    The observation is encoded once per decision by the policy's own preprocessor and
    prefix; the steps run through its own ``denoise_step``, made Gaussian by ``noise``,
    which needs no training (:class:`FlowSDENoise`). Then reinforcement learning trains
    the policy as any of our flows, with ``ChunkPPOLoss`` or TorchRL's losses.
    Parameters are those of ``wrapper``, so ``LeRobotLoss(policy.wrapper)`` clones into
    the same weights, and what LeRobot has frozen stays so.

    Three surprises. The path lies in the policy's normalized space and is padded to its
    ``max_action_dim`` ``D``; only the robot's ``A`` numbers are drawn and have a
    likelihood (:class:`LeRobotFlowDistribution`). A deterministic interaction starts
    from 0, where LeRobot starts from noise: evaluate ``policy.wrapper`` to act as it
    does. And the network is in evaluation mode whenever it acts or judges, also between
    ``train()`` and ``eval()``.

    Asked about the same rows in the same batch, what was written comes back bit for
    bit. In other batches LeRobot's kernels round differently (1e-6 of a log-density):
    ``recompute_log_probs`` with the learner's minibatches makes every ratio 1.

    **Reads** what ``wrapper`` reads; a guide is refused by real-time chunking, which
    takes ``wrapper``. **Writes** ``action_chunk`` float32 ``[*B, H, A]`` in robot
    space, ``denoising_path`` float32 ``[*B, K + 1, H, D]``, ``log_probs`` float32
    ``[*B]`` and ``element_log_probs`` float32 ``[*B, H, A]``.

    Args:
        wrapper: around a policy that flows.

    Keyword Args:
        noise: makes the steps stochastic. For :class:`LearnedNoise`, the condition is
            the normalized state (``condition_dim``).
        num_steps: ``K``; None = the policy's own. With fewer, judging is cheaper.
        sample_key: where the path is written.
        log_probs_key: where its log-probability is written.
        element_log_probs_key: where the terms of it are written.

    Raises:
        SchemaError: the policy does not flow, or by a flow that was not exercised.

    Source: Chen et al., "pi_RL" (arXiv:2510.25889); Shukor et al., "SmolVLA"
    (arXiv:2506.01844), whose time is ``1 - t`` and whose velocity is ``noise - data``.

    Examples:
        >>> from torchrl_vla.policies import FlowSDENoise, LeRobotPolicyWrapper
        >>> wrapper = LeRobotPolicyWrapper(
        ...     lambda batch: torch.zeros(1, 4, 7), action_dim=7, chunk_size=4
        ... )
        >>> LeRobotFlowPolicy(wrapper, noise=FlowSDENoise(0.5))
        Traceback (most recent call last):
        ...
        torchrl_vla.errors.SchemaError: LeRobotFlowPolicy: expected a policy of \
type ['pi0', 'pi05', 'smolvla'], whose chunks flow from noise, got function, which is \
none of LeRobot's. Subclass FlowVLAWrapper for a flow of your own.
    """

    def __init__(
        self,
        wrapper: LeRobotPolicyWrapper,
        *,
        noise: FlowNoise,
        num_steps: int | None = None,
        sample_key: NestedKey = DENOISING_PATH_KEY,
        log_probs_key: NestedKey = LOG_PROBS_KEY,
        element_log_probs_key: NestedKey = ELEMENT_LOG_PROBS_KEY,
    ) -> None:
        own_steps = _flow_steps(wrapper)
        if num_steps is not None:
            check_positive_int("LeRobotFlowPolicy", "num_steps", num_steps)
        super().__init__(
            action_dim=wrapper.action_dim,
            chunk_size=wrapper.chunk_size,
            keys=wrapper.keys,
            output_keys=OutputKeys(
                wrapper.chunk_key, sample_key, log_probs_key, element_log_probs_key
            ),
        )
        self.wrapper = wrapper
        self.noise = noise
        self.num_steps = own_steps if num_steps is None else num_steps

    @classmethod
    def from_pretrained(
        cls,
        source: Path | str,
        *,
        noise: FlowNoise | None = None,
        num_steps: int | None = None,
        **options: Any,
    ) -> LeRobotFlowPolicy:
        """Load a checkpoint of LeRobot's and make its steps stochastic.

        Args:
            source: a folder, or a repo id of the Hugging Face Hub.

        Keyword Args:
            noise: None = the one that :meth:`save_pretrained` wrote there.
            num_steps: see the class.
            **options: of :meth:`LeRobotPolicyWrapper.from_pretrained`.

        Raises:
            SchemaError: there is no noise in the folder, or the policy does not flow.
        """
        noise = read_noise(source) if noise is None else noise
        if noise is None:
            raise SchemaError(
                "LeRobotFlowPolicy.from_pretrained: expected the noise that "
                f"save_pretrained writes in {str(source)!r}, got none. Pass "
                "noise=FlowSDENoise(0.5)."
            )
        wrapper = LeRobotPolicyWrapper.from_pretrained(source, **options)
        noise = noise.to(wrapper._own("device").device)
        return cls(wrapper, noise=noise, num_steps=num_steps)

    @property
    def path_dim(self) -> int:
        """``D``, numbers per action that the model moves, the robot's first."""
        return self.wrapper.config.max_action_dim

    @property
    def condition_dim(self) -> int:
        """``F``, what a learned noise reads: the numbers of the state."""
        return self.wrapper.config.input_features[_STATE].shape[0]

    @property
    def n_action_steps(self) -> int:
        """How many actions of a chunk LeRobot executes before it asks again."""
        return self.wrapper.n_action_steps

    @property
    def instructions(self) -> InstructionTable | None:
        """The table that gives instruction ids their texts."""
        return self.wrapper.instructions

    @instructions.setter
    def instructions(self, table: InstructionTable | None) -> None:
        self.wrapper.instructions = table

    def get_dist(self, tensordict: TensorDictBase) -> LeRobotFlowDistribution:
        """Return the distribution of paths under the current weights."""
        own, batch = self._own, tensordict.batch_size
        frame = own.preprocess(own.make_frames(tensordict)[-1])
        frame.pop("action", None)  # the pipelines add one that is None
        condition = frame[_STATE][..., : self.condition_dim].float()
        with self.inference() as policy:
            prefix = encode_prefix(policy, frame, batch.numel())
        return LeRobotFlowDistribution(self, prefix, condition, batch)

    def decode(self, choice: Tensor) -> Tensor:
        """Return the end of a path in robot space, ``[*B, H, A]``.

        Relative actions are anchored to the observations that were read last.
        """
        batch, size = choice.shape[:-3], (self.chunk_size, self.action_dim)
        rows = choice[..., -1, :, : self.action_dim].reshape(-1, *size)
        chunk = self._own.postprocessor(rows.float()).to(choice.device)
        return pass_boundary(chunk.view(*batch, *size), self.wrapper.boundary)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Choose; write the path, its log-probability and the chunk."""
        dist = self.get_dist(tensordict)
        drawn = interaction_type() == InteractionType.RANDOM
        if drawn and not torch.is_grad_enabled():
            choice, elements = dist.sample_with_log_probs()
        else:
            choice = self._choose(dist)
            elements = dist.element_log_probs(choice.detach())
        answer = {
            self.sample_key: choice.detach(),
            self.element_log_probs_key: elements,
            self.log_probs_key: sum_elements(elements),
            self.chunk_key: self.decode(choice),
        }
        device = self._own.reader.device_of(tensordict)
        for key, value in answer.items():
            tensordict.set(key, value.to(device))
        return tensordict

    def save_pretrained(self, folder: Path | str) -> Path:
        """Write the policy as LeRobot loads it, with ``noise.pt`` beside it.

        Raises:
            ValueError: the noise is of a class that no folder can hold.
        """
        folder = self.wrapper.save_pretrained(folder)
        write_noise(folder, self.noise)
        return folder

    @contextmanager
    def inference(self) -> Iterator[Any]:
        """Give out LeRobot's policy as it is when it acts; gradients stay as set."""
        with self._own.inference() as policy:
            yield policy

    @property
    def _own(self) -> PretrainedPolicy:
        return self.wrapper._own("preprocess")


def _flow_steps(wrapper: LeRobotPolicyWrapper) -> int:
    """Return how many steps the policy takes by itself, or refuse one without."""
    config, kind = wrapper.config, type(wrapper.policy).__name__
    flows = sorted(name for name, kind in KINDS.items() if kind.flow_steps is not None)
    expected = (
        f"LeRobotFlowPolicy: expected a policy of type {flows}, whose chunks flow from "
        "noise, got "
    )
    if config is None:
        raise SchemaError(
            f"{expected}{kind}, which is none of LeRobot's. Subclass FlowVLAWrapper "
            "for a flow of your own."
        )
    steps = KINDS[config.type].flow_steps
    if steps is None:
        raise SchemaError(
            f"{expected}{config.type!r}. {_INSTEAD[config.type]} {_CLONE}"
        )
    if getattr(config, "adapt_to_pi_aloha", False):
        raise SchemaError(
            f"{expected}{config.type!r} with adapt_to_pi_aloha=True, which turns "
            "joints round between the flow and the chunk. Convert the robot's data and "
            "train with adapt_to_pi_aloha=False."
        )
    return steps(config)
