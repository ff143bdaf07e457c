"""Small policies that denoise their chunks, and train on two CPU cores."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from torchrl_vla.policies.denoising.diffusion_policy import DiffusionVLAWrapper
from torchrl_vla.policies.denoising.flow_noise import (
    FlowNoise,
    read_noise,
    write_noise,
)
from torchrl_vla.policies.denoising.flow_policy import FlowVLAWrapper
from torchrl_vla.policies.policy_folder import read_policy
from torchrl_vla.policies.tiny.denoiser import TinyDenoiser
from torchrl_vla.policies.tiny.tiny_policy import (
    TinyPolicy,
    json_config,
    make_backbone,
    read_keys,
)
from torchrl_vla.schema import (
    IMAGE_KEY,
    INSTRUCTION_KEY,
    STATE_KEY,
    InstructionTable,
)


class _TinyDenoisingPolicy(TinyPolicy):
    """What the two share: the backbone encodes, once per decision."""

    denoiser: TinyDenoiser

    def _build(
        self, arguments: dict[str, Any], keys: dict[str, NestedKey | None], *more: str
    ) -> None:
        """Make the networks and the config out of a constructor's ``locals()``.

        The names in ``more`` go into the config beside those of every tiny policy.
        """
        hidden = arguments["hidden"]
        self.backbone = make_backbone(hidden, arguments, keys)
        self.denoiser = TinyDenoiser(
            arguments["chunk_size"],
            arguments["action_dim"],
            hidden,
            hidden=hidden,
            depth=arguments["denoiser_depth"],
        )
        self.config = json_config(arguments, *more, "denoiser_depth")
        self.instructions = arguments["instructions"]

    @property
    def condition_dim(self) -> int:
        """``F``, size of the encoded observation."""
        return self.backbone.out.out_features

    def encode(self, tensordict: TensorDictBase) -> Tensor:
        """Return the encoded observations, ``[N, F]``."""
        return self.backbone(tensordict).reshape(-1, self.condition_dim)


class TinyFlowVLA(_TinyDenoisingPolicy, FlowVLAWrapper):
    """Flow from noise to a chunk, given images, state and an instruction.

    :class:`TinyVLA`'s backbone encodes the observation; a residual network is the
    velocity. Clone demonstrations with ``FlowMatchingLoss(policy, num_samples=8)``,
    which costs little more than one sample, because encoding takes most of the time;
    for reinforcement learning give the same weights noise: ``policy.noise =
    FlowSDENoise(0.5)``.
    **Reads** what TinyVLA reads, and the guide of real-time chunking if there is one;
    **writes** ``action_chunk``, ``denoising_path`` and, with noise, ``log_probs`` and
    ``element_log_probs``.

    Keyword Args:
        action_dim: ``A``.
        chunk_size: ``H``.
        num_steps: ``K``, Euler steps per decision.
        noise: makes the steps stochastic; None = they are not.
        denoiser_depth: residual blocks of the velocity; their width is ``hidden``.
        **options: the other arguments of :class:`TinyVLA`.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> policy = TinyFlowVLA(action_dim=2, chunk_size=4, num_steps=8, cameras=())
        >>> data = TensorDict(
        ...     observation=TensorDict(state=torch.zeros(5)),
        ...     language_instruction="pick",
        ... )
        >>> policy(data)["denoising_path"].shape, data["action_chunk"].shape
        (torch.Size([9, 4, 2]), torch.Size([4, 2]))
    """

    def __init__(
        self,
        *,
        action_dim: int,
        chunk_size: int,
        num_steps: int = 4,
        noise: FlowNoise | None = None,
        state_dim: int | None = None,
        cameras: tuple[str, ...] | None = None,
        instructions: InstructionTable | None = None,
        hidden: int = 256,
        depth: int = 2,
        denoiser_depth: int = 3,
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
            num_steps=num_steps,
            noise=noise,
            **keys,
        )
        self._build(locals(), keys, "num_steps")

    @classmethod
    def from_folder(
        cls, folder: str | Path, *, noise: FlowNoise | Literal["saved"] | None = "saved"
    ) -> TinyFlowVLA:
        """Read a policy that :meth:`to_folder` wrote.

        Args:
            folder: where it was written.

        Keyword Args:
            noise: replaces the noise that the policy was written with.
        """
        policy = read_policy(folder, cls)
        policy.noise = read_noise(folder) if noise == "saved" else noise
        return policy

    def to_folder(self, folder: str | Path) -> None:
        """Write what :class:`TinyVLA` writes, and ``noise.pt``.

        Raises:
            ValueError: the policy has not seen a state yet (``state_dim=None``), or
                its noise is of a class that no folder can hold.
        """
        noise = self.noise
        write_noise(folder, noise)
        self.noise = None  # the rest of the folder is that of the flow alone
        try:
            super().to_folder(folder)
        finally:
            self.noise = noise

    def velocity(self, condition: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Return ``data - noise`` as expected at ``x``, ``[M, H, A]``.

        What is expected of data with mean 0 and variance 1 is put in by hand, and the
        network adds what the observation tells: at ``t = 0`` it predicts the data.
        """
        time = t[:, None, None]
        kept = (1 - time) * (1 - time) + time * time
        return ((2 * time - 1) * x + self.denoiser(condition, x, t)) / kept


class TinyDiffusionVLA(_TinyDenoisingPolicy, DiffusionVLAWrapper):
    """Denoise a chunk by diffusion, given images, state and an instruction.

    :class:`TinyFlowVLA` with a noise predictor in place of a velocity. Clone
    demonstrations with ``DiffusionBCLoss(policy, num_samples=8)``. **Reads** what
    TinyVLA reads; **writes** ``action_chunk``, ``denoising_path`` and, unless
    ``min_std=0``, ``log_probs`` and ``element_log_probs``.

    Keyword Args:
        action_dim: ``A``.
        chunk_size: ``H``.
        num_steps: ``K``, denoising steps per decision.
        num_levels: see :class:`DiffusionVLAWrapper`, as for ``eta``, ``min_std`` and
            ``data_bound``.
        denoiser_depth: residual blocks of the noise predictor.
        **options: the other arguments of :class:`TinyVLA`.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> policy = TinyDiffusionVLA(action_dim=2, chunk_size=4, cameras=())
        >>> data = TensorDict(
        ...     observation=TensorDict(state=torch.zeros(5)),
        ...     language_instruction="pick",
        ... )
        >>> policy(data)["element_log_probs"].shape
        torch.Size([4, 2])
    """

    def __init__(
        self,
        *,
        action_dim: int,
        chunk_size: int,
        num_steps: int = 4,
        num_levels: int = 100,
        eta: float = 1.0,
        min_std: float = 0.1,
        data_bound: float = 5.0,
        state_dim: int | None = None,
        cameras: tuple[str, ...] | None = None,
        instructions: InstructionTable | None = None,
        hidden: int = 256,
        depth: int = 2,
        denoiser_depth: int = 3,
        text_dim: int = 64,
        text_max_bytes: int = 128,
        image_key: NestedKey = IMAGE_KEY,
        state_key: NestedKey | None = STATE_KEY,
        instruction_key: NestedKey = INSTRUCTION_KEY,
    ) -> None:
        keys = read_keys(cameras, image_key, state_key, instruction_key)
        diffusion = {
            "num_steps": num_steps,
            "num_levels": num_levels,
            "eta": eta,
            "min_std": min_std,
            "data_bound": data_bound,
        }
        super().__init__(
            action_dim=action_dim, chunk_size=chunk_size, **diffusion, **keys
        )
        self._build(locals(), keys, *diffusion)

    @classmethod
    def from_folder(cls, folder: str | Path) -> TinyDiffusionVLA:
        """Read a policy that :meth:`to_folder` wrote."""
        return read_policy(folder, cls)

    def predict_noise(self, condition: Tensor, x: Tensor, level: Tensor) -> Tensor:
        """Return the noise that is expected in ``x``, ``[M, H, A]``.

        The network predicts the data, with the sign reversed, where all is noise, and
        the noise where there is none, so that a step never divides its error by a
        tiny number ("v-prediction", Salimans and Ho, 2022).
        """
        kept = self.signal[level][:, None, None]
        answer = self.denoiser(condition, x, level.to(x.dtype) / self.num_levels)
        return (1 - kept).sqrt() * x + kept.sqrt() * answer

    def level_weight(self, level: Tensor) -> Tensor:
        """Return what makes the error that of the network's own answer, ``[M]``.

        Without it the noisiest levels, where the observation alone can tell what the
        chunk is, hardly count, and the policy learns to look very slowly.
        """
        return 1 / self.signal[level]
