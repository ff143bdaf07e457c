"""Flow-matching policy: an action expert on a vision-language trunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_vla._internal.readable_values import can_be_read
from torchrl_vla.policies.denoising.denoising_distribution import Guide
from torchrl_vla.policies.denoising.flow_matching_policy import FlowVLAWrapper
from torchrl_vla.policies.denoising.flow_noise import FlowNoise
from torchrl_vla.policies.vlm.action_bins import ActionBins
from torchrl_vla.policies.vlm.action_expert import ActionExpert, ExpertConfig
from torchrl_vla.policies.vlm.compiled_network import compile_network
from torchrl_vla.policies.vlm.prefix import Prefix
from torchrl_vla.policies.vlm.trunk import VLATrunk
from torchrl_vla.policies.vlm.vlm_policy import VLMPolicy
from torchrl_vla.schema import SchemaError


@dataclass(frozen=True)
class FlowTrainingConfig:
    """How a flow expert and its trunk are trained.

    Args:
        time_alpha: ``1 - t`` follows Beta(time_alpha, 1); 1.5 dwells on noisy times, as
            pi0 does.
        max_delay: training-time real-time chunking: in each sample the first
            ``0..max_delay`` actions are committed already, without noise and at time 1,
            and only the others are learned; 0 = never.
        num_bins: knowledge insulation: the flow's gradient ends before the trunk, which
            learns to write the chunk as action tokens of so many bins instead; None =
            the flow trains the trunk.
        token_coeff: weight of the tokens' cross-entropy beside the flow's error.

    Raises:
        ValueError: a number is out of its range.

    Source: Driess et al., "Knowledge Insulating Vision-Language-Action Models"
    (arXiv:2505.23705); Black et al., "Training-Time Action Conditioning for Efficient
    Real-Time Chunking" (arXiv:2512.05964).
    """

    time_alpha: float = 1.5
    max_delay: int = 0
    num_bins: int | None = None
    token_coeff: float = 1.0

    def __post_init__(self) -> None:
        bins = 2 if self.num_bins is None else self.num_bins
        if not (self.time_alpha > 0 and self.max_delay >= 0 and bins > 1):
            raise ValueError(
                "FlowTrainingConfig: expected time_alpha > 0, max_delay >= 0 and "
                f"num_bins of None or at least 2, got {self}."
            )


@dataclass(frozen=True)
class FlowCondition:
    """What the steps of a flow depend on, ``N`` rows.

    Args:
        prefix: of the trunk.
        state: ``[N, S]``, for the expert; None = it reads none.
    """

    prefix: Prefix
    state: Tensor | None

    def repeat(self, times: int) -> FlowCondition:
        """Return the rows ``times`` times, one block behind the other."""
        state = None if self.state is None else self.state.repeat(times, 1)
        return FlowCondition(self.prefix.repeat(times), state)


class VLMFlowPolicy(VLMPolicy, FlowVLAWrapper):
    """Flow from noise to a chunk, given what a vision-language trunk has read.

    The trunk runs once per decision; all denoising steps attend to its keys and values,
    layer by layer. Clone demonstrations with ``FlowMatchingLoss(policy)``; for
    reinforcement learning give the same weights noise: ``policy.noise =
    FlowSDENoise(0.5)``. **Reads** images, instruction, the state where the trunk's
    configuration has a ``state_dim``, and the guide of real-time chunking if there is
    one. **Writes** what :class:`FlowVLAWrapper` writes.

    With ``training.max_delay`` a guide's actions of weight 1 are committed: they stand
    in the chunk as they are, at time 1, and the flow continues them without a gradient.
    The guide's other weights are not read. Without it a guide bends the flow as in
    every :class:`FlowVLAWrapper`.

    Args:
        trunk: is trained in place, as far as its weights require a gradient.

    Keyword Args:
        action_dim: ``A``.
        chunk_size: ``H``.
        num_steps: ``K``, Euler steps per decision.
        noise: makes the steps stochastic; None = they are not.
        expert: sizes of the expert.
        training: times, committed prefixes and knowledge insulation.

    Raises:
        ValueError: ``training.max_delay`` is not below the chunk's size.

    Source: Black et al., "pi0" (arXiv:2410.24164), whose time is ``1 - t``.
    """

    judges_steps_together = False

    def __init__(
        self,
        trunk: VLATrunk,
        *,
        action_dim: int,
        chunk_size: int,
        num_steps: int = 10,
        noise: FlowNoise | None = None,
        expert: ExpertConfig = ExpertConfig(),
        training: FlowTrainingConfig = FlowTrainingConfig(),
    ) -> None:
        super().__init__(
            action_dim=action_dim,
            chunk_size=chunk_size,
            num_steps=num_steps,
            noise=noise,
            keys=trunk.keys,
        )
        if training.max_delay >= chunk_size:
            raise ValueError(
                f"VLMFlowPolicy: expected max_delay below chunk_size={chunk_size}, got "
                f"{training.max_delay}. An action must be left to learn."
            )
        self.trunk, self.expert_config, self.flow_training = trunk, expert, training
        self.expert = ActionExpert(
            trunk,
            expert,
            state_dim=trunk.config.state_dim if self._expert_reads_state else None,
            chunk_size=chunk_size,
            action_dim=action_dim,
        )
        decoder = trunk.decoder
        path = next(name for name, part in self.named_modules() if part is decoder)
        unread = (f"{path}.layers.{trunk.num_layers - 1}.*", f"{path}.norm.*")
        reason = "the expert reads no more than the keys and values of the last layer"
        self.without_gradient = {
            **VLMPolicy.without_gradient,
            **dict.fromkeys(unread, reason),
        }
        self.time_alpha = training.time_alpha
        self.action_bins: ActionBins | None = None
        if training.num_bins is not None:
            self.action_bins = ActionBins(training.num_bins, trunk.hidden_size)

    @property
    def config(self) -> dict[str, object]:
        """The constructor's arguments without the trunk, ``noise`` as it is now."""
        return {
            **super().config,
            "num_steps": self.num_steps,
            "noise": self.noise,
            "expert": self.expert_config,
            "training": self.flow_training,
        }

    @property
    def condition_dim(self) -> int:
        """``F``, size of the features that a learned noise reads."""
        return self.trunk.hidden_size

    def compile_networks(self, **options: Any) -> None:
        """Compile trunk and expert, in place; see :class:`VLMPolicy`."""
        super().compile_networks(**options)
        compile_network(self.expert, **options)

    def encode(self, tensordict: TensorDictBase) -> FlowCondition:
        """Return the trunk's keys and values, and the state for the expert."""
        return self._condition(tensordict, self.trunk.encode(tensordict))

    def features(self, condition: FlowCondition) -> Tensor:
        """Return the mean state of the prompt's tokens, ``[N, F]``."""
        return condition.prefix.features

    def repeat(self, condition: FlowCondition, times: int) -> FlowCondition:
        """Return the rows of a condition ``times`` times."""
        return condition if times == 1 else condition.repeat(times)

    def velocity(self, condition: FlowCondition, x: Tensor, t: Tensor) -> Tensor:
        """Return ``data - noise`` as expected at ``x``, ``[M, H, A]``.

        The expectation for data with mean 0 and variance 1 is a closed form; the expert
        adds what depends on the observation. At ``t = 0`` it predicts the data.

        Args:
            condition: of :meth:`encode`, one row per path.
            x: where the flow is, ``[M, H, A]``.
            t: when, ``[M]``, or for each action, ``[M, H]``.
        """
        if t.ndim == 1:
            t = t[:, None].expand(-1, self.chunk_size)
        answer = self.expert(condition.prefix, x, t, condition.state)
        time = t.unsqueeze(-1)
        kept = (1 - time) * (1 - time) + time * time
        return ((2 * time - 1) * x + answer) / kept

    def move(
        self, condition: FlowCondition, x: Tensor, step: Tensor, guide: Guide | None
    ) -> Tensor:
        """Take an Euler step of the ODE that keeps what is committed."""
        if guide is None or not self.flow_training.max_delay:
            return super().move(condition, x, step, guide)
        chunk, weight = guide
        committed = weight >= 1
        self._check_committed(committed)
        x = torch.where(committed.unsqueeze(-1), chunk.to(x.dtype), x)
        t = self._time(x, step)[:, None].expand(-1, self.chunk_size)
        velocity = self.velocity(condition, x, torch.where(committed, 1.0, t))
        moved = x + velocity / self.num_steps
        return torch.where(committed.unsqueeze(-1), x, moved)

    def denoising_errors(
        self,
        tensordict: TensorDictBase,
        *,
        generator: torch.Generator | None = None,
        num_samples: int = 1,
        time_alpha: float | None = None,
    ) -> Tensor:
        """Return the flow's squared errors, ``[*B, H, A]``, and what insulation adds.

        Reads the target at ``chunk_key``; see :class:`FlowVLAWrapper`. Committed
        actions have an error of 0. With knowledge insulation the cross-entropy of each
        number's token is added, times ``token_coeff``.

        Args:
            tensordict: a batch with targets in model space.

        Keyword Args:
            generator: draws time, noise and delay; None = PyTorch's global one.
            num_samples: see :class:`DenoisingVLAWrapper`.
            time_alpha: in place of the policy's own.
        """
        data = self._target(tensordict)
        prefix = self.trunk.encode(tensordict)
        insulated = prefix if self.action_bins is None else prefix.detach()
        condition = self._condition(tensordict, insulated)
        n = len(data)
        condition, data = condition.repeat(num_samples), data.repeat(num_samples, 1, 1)
        device = data.device
        noise = torch.randn(data.shape, generator=generator, device=device)
        u = torch.rand(len(data), generator=generator, device=device)
        alpha = self.time_alpha if time_alpha is None else time_alpha
        t = (1 - u ** (1 / alpha))[:, None].expand(-1, self.chunk_size)
        committed = self._draw_committed(u, generator)
        if committed is not None:
            t = torch.where(committed, 1.0, t)
        time = t.unsqueeze(-1)
        velocity = self.velocity(condition, (1 - time) * noise + time * data, t)
        errors = (velocity - (data - noise)) ** 2
        if committed is not None:
            errors = errors.masked_fill(committed.unsqueeze(-1), 0.0)
        errors = errors.unflatten(0, (num_samples, n)).mean(0)
        if self.action_bins is not None:
            surprise = self.action_bins.surprise(self.trunk, prefix, data[:n])
            errors = errors + self.flow_training.token_coeff * surprise
        return errors.reshape(*tensordict.batch_size, *data.shape[1:])

    @property
    def _expert_reads_state(self) -> bool:
        config = self.trunk.config
        return config.state == "head" and config.state_dim is not None

    def _condition(self, tensordict: TensorDictBase, prefix: Prefix) -> FlowCondition:
        state = None
        if self._expert_reads_state:
            state = self.trunk.rows.state(tensordict).to(prefix.mask.device)
        return FlowCondition(prefix, state)

    def _draw_committed(
        self, like: Tensor, generator: torch.Generator | None
    ) -> Tensor | None:
        """Draw how many actions are committed; bool ``[N, H]``, None = none ever."""
        most = self.flow_training.max_delay
        if not most:
            return None
        size, device = (len(like), 1), like.device
        delay = torch.randint(0, most + 1, size, generator=generator, device=device)
        return torch.arange(self.chunk_size, device=device) < delay

    def _check_committed(self, committed: Tensor) -> None:
        most = self.flow_training.max_delay
        if not can_be_read(committed):
            return
        longest = int(committed.sum(1).max())
        if longest > most:
            raise SchemaError(
                f"VLMFlowPolicy: expected at most {most} committed actions "
                f"(guide_weight 1), as in training, got {longest}. Lower the "
                "executor's inference_delay, or train with a larger max_delay."
            )
