"""Tiny policy with a Gaussian head."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from torchrl_vla.policies.gaussian.gaussian_policy import GaussianVLAWrapper
from torchrl_vla.policies.readable_weights import readable_weights
from torchrl_vla.policies.tiny.backbone import BackboneConfig, TinyBackbone
from torchrl_vla.policies.tiny.tiny_policy import TinyPolicy, keys_read
from torchrl_vla.schema import InstructionTable, ObservationKeys


@dataclass(frozen=True)
class StdConfig:
    """Standard deviation of a Gaussian head, in model space.

    Args:
        initial: of each number at first.
        min: lower bound.
        max: upper bound.
        reads_inputs: True = the network predicts it, ``[*B, H, A]``; False = it is one
            learned number per action dimension, ``[A]``.

    Raises:
        ValueError: not ``min <= initial <= max``.
    """

    initial: float = 0.2
    min: float = 0.01
    max: float = 1.0
    reads_inputs: bool = False

    def __post_init__(self) -> None:
        if not self.min <= self.initial <= self.max:
            raise ValueError(
                f"StdConfig: expected min <= initial <= max, got {self.initial!r} "
                f"outside [{self.min!r}, {self.max!r}]."
            )


class TinyGaussianVLA(TinyPolicy, GaussianVLAWrapper):
    """Sample a chunk around the one that images, state and an instruction call for.

    :class:`TinyVLA` with a standard deviation. Without sampling it predicts what
    TinyVLA predicts, and ``BCLoss`` trains it alike; :meth:`from_cloned` starts from a
    trained one. **Reads** what TinyVLA reads. **Writes** what
    :class:`GaussianVLAWrapper` writes.

    Keyword Args:
        action_dim: ``A``.
        chunk_size: ``H``.
        std: first value and bounds of the standard deviation.
        backbone: sizes, cameras and image sizes.
        keys: observation entries that the policy reads.
        instructions: table for instruction ids; text needs none.

    Raises:
        ValueError: not ``0 < std.min``.

    Examples:
        >>> from tensordict import TensorDict
        >>> policy = TinyGaussianVLA(
        ...     action_dim=2, chunk_size=4, backbone=BackboneConfig(cameras=())
        ... )
        >>> data = TensorDict(
        ...     observation=TensorDict(state=torch.zeros(5)),
        ...     language_instruction="pick",
        ... )
        >>> policy(data)["chunk_sample"].shape, data["log_probs"].shape
        (torch.Size([4, 2]), torch.Size([]))
    """

    def __init__(
        self,
        *,
        action_dim: int,
        chunk_size: int,
        std: StdConfig = StdConfig(),
        backbone: BackboneConfig = BackboneConfig(),
        keys: ObservationKeys = ObservationKeys(),
        instructions: InstructionTable | None = None,
    ) -> None:
        keys = keys_read(keys, backbone)
        super().__init__(
            action_dim=action_dim,
            chunk_size=chunk_size,
            min_std=std.min,
            max_std=std.max,
            keys=keys,
        )
        self.std = std
        size = chunk_size * action_dim
        out_dim = 2 * size if std.reads_inputs else size
        self.backbone = TinyBackbone(out_dim, backbone, keys)
        log_std = math.log(std.initial)
        self.log_std: nn.Parameter | None = None
        if std.reads_inputs:
            with torch.no_grad():  # the same standard deviation for every input
                self.backbone.out.weight[size:] = 0.0
                self.backbone.out.bias[size:] = log_std
        else:
            self.log_std = nn.Parameter(torch.full((action_dim,), log_std))
        self.instructions = instructions

    @property
    def config(self) -> dict[str, object]:
        """The constructor's arguments."""
        return {**super().config, "std": self.std}

    @classmethod
    def from_cloned(
        cls, policy: TinyPolicy, std: StdConfig = StdConfig()
    ) -> TinyGaussianVLA:
        """Make a Gaussian policy whose mean is a cloned policy; weights are copied.

        Args:
            policy: a ``TinyVLA``, complete (it has seen a state or was built for one).
            std: first value and bounds of the standard deviation.
        """
        weights = readable_weights(policy.backbone)
        twin = cls(
            action_dim=policy.action_dim,
            chunk_size=policy.chunk_size,
            std=std,
            backbone=policy.backbone_config,
            keys=policy.keys,
            instructions=policy.instructions,
        ).to(weights["out.weight"])
        if std.reads_inputs:
            for name in ("out.weight", "out.bias"):
                own = twin.backbone.get_parameter(name).detach()
                more = own[len(weights[name]) :]
                weights[name] = torch.cat([weights[name], more])
        twin.backbone.load_state_dict(weights)
        twin.policy_space = policy.policy_space
        return twin

    def predict_mean_and_log_std(
        self, tensordict: TensorDictBase
    ) -> tuple[Tensor, Tensor]:
        """Return the mean ``[*B, H, A]`` and the log of the standard deviation."""
        shape = (-1, self.chunk_size, self.action_dim)
        heads = self.backbone(tensordict).unflatten(-1, shape)
        if self.log_std is not None:
            return heads.squeeze(-3), self.log_std
        mean, log_std = heads.unbind(-3)
        return mean, log_std
