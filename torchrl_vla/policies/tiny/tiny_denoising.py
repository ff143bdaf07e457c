"""Tiny policies that denoise their chunks: flow matching and diffusion."""

from __future__ import annotations

from tensordict import TensorDictBase
from torch import Tensor

from torchrl_vla.policies.denoising.diffusion_policy import (
    DiffusionConfig,
    DiffusionVLAWrapper,
)
from torchrl_vla.policies.denoising.flow_matching_policy import FlowVLAWrapper
from torchrl_vla.policies.denoising.flow_noise import FlowNoise
from torchrl_vla.policies.readable_weights import uncompiled
from torchrl_vla.policies.tiny.backbone import BackboneConfig, TinyBackbone
from torchrl_vla.policies.tiny.denoiser import TinyDenoiser
from torchrl_vla.policies.tiny.tiny_policy import TinyPolicy, keys_read
from torchrl_vla.schema import InstructionTable, ObservationKeys


class _TinyDenoisingPolicy(TinyPolicy):
    """Encode the observation by the backbone, once per decision."""

    denoiser: TinyDenoiser

    def _build(
        self,
        backbone: BackboneConfig,
        instructions: InstructionTable | None,
        denoiser_depth: int,
    ) -> None:
        self.backbone = TinyBackbone(backbone.hidden, backbone, self.keys)
        self.denoiser = TinyDenoiser(
            self.chunk_size,
            self.action_dim,
            backbone.hidden,
            hidden=backbone.hidden,
            depth=denoiser_depth,
        )
        self.denoiser_depth = denoiser_depth
        self.instructions = instructions

    @property
    def condition_dim(self) -> int:
        """``F``, size of the encoded observation."""
        return uncompiled(self.backbone).config.hidden

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
        denoiser_depth: residual blocks of the velocity; their width is the backbone's.
        backbone: sizes, cameras and image sizes.
        keys: observation entries that the policy reads.
        instructions: table for instruction ids; text needs none.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> policy = TinyFlowVLA(
        ...     action_dim=2,
        ...     chunk_size=4,
        ...     num_steps=8,
        ...     backbone=BackboneConfig(cameras=()),
        ... )
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
        denoiser_depth: int = 3,
        backbone: BackboneConfig = BackboneConfig(),
        keys: ObservationKeys = ObservationKeys(),
        instructions: InstructionTable | None = None,
    ) -> None:
        super().__init__(
            action_dim=action_dim,
            chunk_size=chunk_size,
            num_steps=num_steps,
            noise=noise,
            keys=keys_read(keys, backbone),
        )
        self._build(backbone, instructions, denoiser_depth)

    @property
    def config(self) -> dict[str, object]:
        """The constructor's arguments, ``noise`` as it is now."""
        return {
            **super().config,
            "num_steps": self.num_steps,
            "noise": self.noise,
            "denoiser_depth": self.denoiser_depth,
        }

    def velocity(self, condition: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Return ``data - noise`` as expected at ``x``, ``[M, H, A]``.

        The expectation for data with mean 0 and variance 1 is a closed form; the
        network adds what depends on the observation. At ``t = 0`` it predicts the data.
        """
        time = t[:, None, None]
        kept = (1 - time) * (1 - time) + time * time
        return ((2 * time - 1) * x + self.denoiser(condition, x, t)) / kept


class TinyDiffusionVLA(_TinyDenoisingPolicy, DiffusionVLAWrapper):
    """Denoise a chunk by diffusion, given images, state and an instruction.

    :class:`TinyFlowVLA` with a noise predictor in place of a velocity. Clone
    demonstrations with ``DiffusionBCLoss(policy, num_samples=8)``. **Reads** what
    TinyVLA reads. **Writes** ``action_chunk``, ``denoising_path`` and, unless
    ``diffusion.min_std`` is 0, ``log_probs`` and ``element_log_probs``.

    Keyword Args:
        action_dim: ``A``.
        chunk_size: ``H``.
        diffusion: steps, levels and noise.
        denoiser_depth: residual blocks of the noise predictor.
        backbone: sizes, cameras and image sizes.
        keys: observation entries that the policy reads.
        instructions: table for instruction ids; text needs none.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> policy = TinyDiffusionVLA(
        ...     action_dim=2, chunk_size=4, backbone=BackboneConfig(cameras=())
        ... )
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
        diffusion: DiffusionConfig = DiffusionConfig(num_steps=4),
        denoiser_depth: int = 3,
        backbone: BackboneConfig = BackboneConfig(),
        keys: ObservationKeys = ObservationKeys(),
        instructions: InstructionTable | None = None,
    ) -> None:
        super().__init__(
            action_dim=action_dim,
            chunk_size=chunk_size,
            diffusion=diffusion,
            keys=keys_read(keys, backbone),
        )
        self._build(backbone, instructions, denoiser_depth)

    @property
    def config(self) -> dict[str, object]:
        """The constructor's arguments."""
        return {
            **super().config,
            "diffusion": self.diffusion,
            "denoiser_depth": self.denoiser_depth,
        }

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

        Without it the noisiest levels, where the observation alone determines the
        chunk, hardly count, and the policy learns to use images very slowly.
        """
        return 1 / self.signal[level]
