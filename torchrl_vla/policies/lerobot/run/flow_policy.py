"""LeRobot flow policies with log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_vla.policies.denoising.denoising_distribution import Guide
from torchrl_vla.policies.denoising.flow_matching_policy import FlowVLAWrapper
from torchrl_vla.policies.denoising.flow_noise import (
    FlowNoise,
    read_noise,
    write_noise,
)
from torchrl_vla.policies.lerobot.lerobot_types import Config, Policy, optional_field
from torchrl_vla.policies.lerobot.registry import KINDS, kind_of
from torchrl_vla.policies.lerobot.run.flow_distribution import LeRobotFlowDistribution
from torchrl_vla.policies.lerobot.run.flow_prefix import FlowPrefix, encode_prefix
from torchrl_vla.policies.lerobot.run.policy_wrapper import LeRobotPolicyWrapper
from torchrl_vla.policies.lerobot.run.pretrained_policy import PretrainedPolicy
from torchrl_vla.policies.stochastic_policy import OutputKeys
from torchrl_vla.schema import (
    DENOISING_PATH_KEY,
    NOISE_SEED_KEY,
    ROBOT_SPACE,
    InstructionTable,
    SchemaError,
    check_positive_int,
)

_STATE = "observation.state"


class LeRobotFlowPolicy(FlowVLAWrapper):
    """Sample chunks of SmolVLA, pi0 or pi0.5 with their log-probabilities.

    The observation is encoded once per decision by the policy's own preprocessor and
    prefix; the steps run through its own ``denoise_step``, made Gaussian by ``noise``,
    which needs no training (:class:`FlowSDENoise`). Then reinforcement learning trains
    the policy as any of our flows, with ``ChunkPPOLoss`` or TorchRL's losses.
    Parameters are those of ``wrapper``: ``LeRobotLoss(policy)`` clones into the same
    weights, and what LeRobot has frozen stays frozen.

    **Reads** what ``wrapper`` reads; real-time chunking, whose guided paths have no
    likelihood, takes ``wrapper``. **Writes** ``action_chunk`` float32 ``[*B, H, A]``
    in robot space, ``denoising_path`` float32 ``[*B, K + 1, H, D]``, ``log_probs``
    float32 ``[*B]`` and ``element_log_probs`` float32 ``[*B, H, A]``.

    Note:
        The path lies in the policy's normalized space and is padded to its
        ``max_action_dim`` ``D``; only the robot's ``A`` numbers are sampled and have a
        likelihood (:class:`LeRobotFlowDistribution`). A deterministic interaction
        starts from 0, where LeRobot starts from noise: evaluate ``policy.wrapper`` to
        act as it does. The network is in evaluation mode whenever it acts or computes
        log-probabilities, also between ``train()`` and ``eval()``.

        In the same batch the log-probabilities are those that were written, bit for
        bit. In other batches LeRobot's kernels round differently (1e-6 of a
        log-density): ``recompute_log_probs`` with the learner's minibatches makes every
        ratio 1.

    Args:
        wrapper: around a policy that flows.

    Keyword Args:
        noise: makes the steps stochastic. For :class:`LearnedNoise`, the condition is
            the normalized state (``condition_dim``).
        num_steps: ``K``; None = the policy's own. With fewer, log-probabilities are
            cheaper.

    Raises:
        SchemaError: the policy does not flow, or its flow is untested.

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

    judges_steps_together = False

    def __init__(
        self,
        wrapper: LeRobotPolicyWrapper,
        *,
        noise: FlowNoise,
        num_steps: int | None = None,
    ) -> None:
        own_steps = _flow_steps(wrapper)
        if num_steps is not None:
            check_positive_int("LeRobotFlowPolicy", "num_steps", num_steps)
        super().__init__(
            action_dim=wrapper.action_dim,
            chunk_size=wrapper.chunk_size,
            num_steps=own_steps if num_steps is None else num_steps,
            noise=noise,
            keys=wrapper.keys,
            output_keys=OutputKeys(wrapper.chunk_key, DENOISING_PATH_KEY),
        )
        self.keys = wrapper.keys
        self.in_keys = list(wrapper.in_keys)
        self.optional_in_keys = [NOISE_SEED_KEY]  # it is not guided
        self.policy_space = ROBOT_SPACE
        self.cloning_loss = "lerobot"
        self.folder_format = "lerobot"
        self.wrapper = wrapper

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
            noise: None = the one that :meth:`to_folder` wrote there.
            num_steps: ``K``; None = the policy's own.
            **options: of :meth:`LeRobotPolicyWrapper.from_pretrained`.

        Raises:
            SchemaError: there is no noise in the folder, or the policy does not flow.
        """
        noise = read_noise(source) if noise is None else noise
        if noise is None:
            raise SchemaError(
                "LeRobotFlowPolicy.from_pretrained: expected the noise that "
                f"to_folder writes in {str(source)!r}, got none. Pass "
                "noise=FlowSDENoise(0.5)."
            )
        wrapper = LeRobotPolicyWrapper.from_pretrained(source, **options)
        policy = cls(wrapper, noise=noise, num_steps=num_steps)
        noise.to(policy.pretrained.device)
        return policy

    @classmethod
    def from_folder(cls, folder: Path | str) -> LeRobotFlowPolicy:
        """Read a policy that :meth:`to_folder` wrote."""
        return cls.from_pretrained(folder)

    @property
    def path_dim(self) -> int:
        """``D``, numbers per action of the model, the robot's first."""
        return self.config.max_action_dim

    @property
    def condition_dim(self) -> int:
        """``F``, size of the state that a learned noise reads."""
        return self.config.input_features[_STATE].shape[0]

    @property
    def pretrained(self) -> PretrainedPolicy:
        """LeRobot's policy between its processors."""
        return self.wrapper.adapter.as_pretrained("LeRobotFlowPolicy")

    @property
    def config(self) -> Config:
        """LeRobot's configuration of the policy."""
        return self.wrapper.config

    @property
    def n_action_steps(self) -> int:
        """Actions of a chunk that LeRobot executes per call."""
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
        condition = self.encode(tensordict)
        return LeRobotFlowDistribution(self, condition, tensordict.batch_size)

    def encode(self, tensordict: TensorDictBase) -> FlowPrefix:
        """Return the prefix of the policy's own model, ``N`` rows for all of ``*B``."""
        own = self.pretrained
        frame = own.preprocess(own.make_frames(tensordict)[-1])
        frame.pop("action", None)  # the pipelines add one that is None
        features = frame[_STATE][..., : self.condition_dim].float()
        with self.inference() as policy:
            return encode_prefix(policy, frame, features)

    def features(self, condition: FlowPrefix) -> Tensor:
        """Return the normalized states, ``[N, F]``."""
        return condition.features

    def velocity(self, condition: FlowPrefix, x: Tensor, t: Tensor) -> Tensor:
        """Return ``data - noise`` as expected at ``x``, ``[N, H, D]``."""
        return condition.velocity(x, 1 - t)

    def step_velocity(self, condition: FlowPrefix, x: Tensor, step: Tensor) -> Tensor:
        """Return the velocity at the beginning of a step, ``[N, H, D]``."""
        # In Python's precision, as in LeRobot: time is embedded by fast waves.
        time = 1.0 - step.double() * (1 / self.num_steps)
        return condition.velocity(x, time.to(x.dtype))

    def move(
        self, condition: FlowPrefix, x: Tensor, step: Tensor, guide: Guide | None
    ) -> Tensor:
        """Take an Euler step of the ODE, as LeRobot rounds it."""
        return x + (1 / self.num_steps) * self.step_velocity(condition, x, step)

    def denoising_errors(
        self,
        tensordict: TensorDictBase,
        *,
        generator: torch.Generator | None = None,
        num_samples: int = 1,
        time_alpha: float = 1.0,
    ) -> Tensor:
        """Refuse: LeRobot's own loss clones into it.

        Raises:
            SchemaError: always.
        """
        raise SchemaError(
            "LeRobotFlowPolicy: expected LeRobotLoss(policy) to clone demonstrations, "
            "in robot space and with the policy's own preparation, got a loss of flows "
            "in model space. Use make_cloning_loss(policy)."
        )

    def decode(self, sample: Tensor) -> Tensor:
        """Return the end of a path in robot space, ``[*B, H, A]``.

        Relative actions are anchored to the observations that were read last.
        """
        batch, size = sample.shape[:-3], (self.chunk_size, self.action_dim)
        chunk = sample[..., -1, :, : self.action_dim].reshape(-1, *size)
        chunk = self.pretrained.pipeline.postprocessor(chunk.float())
        return chunk.to(sample.device).view(*batch, *size)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the path, its log-probability and the chunk."""
        super().forward(tensordict)
        device = self.pretrained.reader.device_of(tensordict)
        for key in self.out_keys:
            tensordict.set(key, tensordict.get(key).to(device))
        return tensordict

    def to_folder(self, folder: Path | str) -> None:
        """Write the policy as LeRobot loads it, with ``noise.pt`` beside it.

        Raises:
            ValueError: the noise is of a class that no folder can hold.
        """
        write_noise(folder, self.noise)
        self.wrapper.to_folder(folder)

    @contextmanager
    def inference(self) -> Iterator[Policy]:
        """Yield LeRobot's policy as it is when it acts; gradients stay as set."""
        with self.pretrained.inference() as policy:
            yield policy

    acting = inference

    def _time(self, like: Tensor, step: Tensor) -> Tensor:
        return (step.double() * (1 / self.num_steps)).to(like.dtype)


def _flow_steps(wrapper: LeRobotPolicyWrapper) -> int:
    """Return the number of steps that the policy takes by itself."""
    config, name = wrapper.config, wrapper.adapter.name
    flows = sorted(name for name, kind in KINDS.items() if kind.flow_steps is not None)
    expected = (
        f"LeRobotFlowPolicy: expected a policy of type {flows}, whose chunks flow from "
        "noise, got "
    )
    if config is None:
        raise SchemaError(
            f"{expected}{name}, which is none of LeRobot's. Subclass FlowVLAWrapper "
            "for a flow of your own."
        )
    pretrained = wrapper.adapter.as_pretrained("LeRobotFlowPolicy")
    if pretrained.predict_fn is not None:
        raise SchemaError(
            f"{expected}{name} with a predict_fn, which its steps would not call. Load "
            "the policy without it."
        )
    kind = kind_of(config.type)
    if kind.flow_steps is None:
        raise SchemaError(
            f"{expected}{config.type!r}. {kind.likelihood_advice} To go on cloning it, "
            "LeRobotLoss takes it as it is."
        )
    if optional_field(config, "adapt_to_pi_aloha", False):
        raise SchemaError(
            f"{expected}{config.type!r} with adapt_to_pi_aloha=True, which turns "
            "joints round between the flow and the chunk. Convert the robot's data and "
            "train with adapt_to_pi_aloha=False."
        )
    return kind.flow_steps(config)
