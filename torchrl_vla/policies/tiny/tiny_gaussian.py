"""The tiny policy with a Gaussian head."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor, nn

from torchrl_vla.policies.gaussian.gaussian_policy import GaussianVLAWrapper
from torchrl_vla.policies.policy_folder import read_policy
from torchrl_vla.policies.tiny.tiny_policy import (
    TinyPolicy,
    json_config,
    make_backbone,
    read_keys,
)
from torchrl_vla.policies.tiny.tiny_vla import TinyVLA
from torchrl_vla.schema import (
    IMAGE_KEY,
    INSTRUCTION_KEY,
    STATE_KEY,
    InstructionTable,
)


class TinyGaussianVLA(TinyPolicy, GaussianVLAWrapper):
    """Draw a chunk around the one that images, state and an instruction call for.

    :class:`TinyVLA` with a spread. Without sampling it answers as TinyVLA does, and
    ``BCLoss`` trains it alike; :meth:`from_cloned` goes on from a trained one.

    Keyword Args:
        action_dim: ``A``.
        chunk_size: ``H``.
        initial_std: standard deviation of each number at first, in model space.
        std_reads_inputs: True = the network predicts the spread, ``[*B, H, A]``; False
            = it is one learned number per action dimension, ``[A]``.
        min_std: lower bound of the standard deviation.
        max_std: upper bound.
        **options: the other arguments of :class:`TinyVLA`.

    Raises:
        ValueError: not ``0 < min_std <= initial_std <= max_std``.

    Examples:
        >>> from tensordict import TensorDict
        >>> policy = TinyGaussianVLA(action_dim=2, chunk_size=4, cameras=())
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
        initial_std: float = 0.2,
        std_reads_inputs: bool = False,
        min_std: float = 0.01,
        max_std: float = 1.0,
        state_dim: int | None = None,
        cameras: tuple[str, ...] | None = None,
        instructions: InstructionTable | None = None,
        hidden: int = 256,
        depth: int = 2,
        text_dim: int = 64,
        text_max_bytes: int = 128,
        image_key: NestedKey = IMAGE_KEY,
        state_key: NestedKey | None = STATE_KEY,
        instruction_key: NestedKey = INSTRUCTION_KEY,
    ) -> None:
        keys = read_keys(cameras, image_key, state_key, instruction_key)
        super().__init__(
            action_dim=action_dim,
            chunk_size=chunk_size,
            min_std=min_std,
            max_std=max_std,
            **keys,
        )
        if not min_std <= initial_std <= max_std:
            raise ValueError(
                "TinyGaussianVLA: expected min_std <= initial_std <= max_std, got "
                f"{initial_std!r} outside [{min_std!r}, {max_std!r}]."
            )
        size = chunk_size * action_dim
        out_dim = 2 * size if std_reads_inputs else size
        self.backbone = make_backbone(out_dim, locals(), keys)
        log_std = math.log(initial_std)
        if std_reads_inputs:
            self.log_std = None
            with torch.no_grad():  # from the same spread everywhere
                self.backbone.out.weight[size:] = 0.0
                self.backbone.out.bias[size:] = log_std
        else:
            self.log_std = nn.Parameter(torch.full((action_dim,), log_std))
        self.config = json_config(
            locals(), "initial_std", "std_reads_inputs", "min_std", "max_std"
        )
        self.instructions = instructions

    @classmethod
    def from_folder(cls, folder: str | Path) -> TinyGaussianVLA:
        """Read a policy that :meth:`to_folder` wrote."""
        return read_policy(folder, cls)

    @classmethod
    def from_cloned(
        cls,
        policy: TinyVLA,
        *,
        initial_std: float = 0.2,
        std_reads_inputs: bool = False,
        min_std: float = 0.01,
        max_std: float = 1.0,
    ) -> TinyGaussianVLA:
        """Put a spread around a policy that was cloned; its weights are copied.

        Args:
            policy: the mean, complete (it has seen a state or was built for one).

        Keyword Args:
            initial_std: see the class, as for the others.
            std_reads_inputs: see there.
            min_std: see there.
            max_std: see there.
        """
        twin = cls(
            **{**policy.config, "state_dim": policy._state_dim()},
            initial_std=initial_std,
            std_reads_inputs=std_reads_inputs,
            min_std=min_std,
            max_std=max_std,
            instructions=policy.instructions,
        ).to(policy.backbone.out.weight)
        weights = policy.backbone.state_dict()
        if std_reads_inputs:
            for name in ("out.weight", "out.bias"):
                own = twin.backbone.get_parameter(name).detach()
                more = own[len(weights[name]) :]
                weights[name] = torch.cat([weights[name], more])
        twin.backbone.load_state_dict(weights)
        return twin

    def predict_mean_and_log_std(
        self, tensordict: TensorDictBase
    ) -> tuple[Tensor, Tensor]:
        """Return the mean ``[*B, H, A]`` and the logarithm of the spread."""
        shape = (-1, self.chunk_size, self.action_dim)
        heads = self.backbone(tensordict).unflatten(-1, shape)
        if self.log_std is not None:
            return heads.squeeze(-3), self.log_std
        mean, log_std = heads.unbind(-3)
        return mean, log_std
