"""Behavior cloning loss of diffusion policies."""

from __future__ import annotations

from tensordict.nn import TensorDictModuleBase

from torchrl_vla.objectives.denoising_loss import DenoisingLoss
from torchrl_vla.schema import check_positive_int


class DiffusionBCLoss(DenoisingLoss):
    """Train a diffusion head to predict the noise in the expert's noised chunk.

    The mean of ``(predict_noise(x_l, l) - noise)^2`` over valid elements, for one noise
    level and one noise per sample. Padding and randomness: see :class:`DenoisingLoss`;
    keys and errors: see :class:`ElementwiseCloningLoss`.

    **Reads** the policy's ``in_keys``, ``action_chunk`` and ``action_is_pad``;
    **writes** ``loss_bc``.

    Args:
        actor_network: policy with ``denoising_errors`` (``DiffusionVLAWrapper``).

    Keyword Args:
        num_samples: levels and noises per frame. The observation is encoded once for
            all of them, so more samples reduce the gradient's variance at little cost.

    Raises:
        ValueError: ``num_samples`` is not positive.

    Source: Ho et al., "Denoising Diffusion Probabilistic Models" (2020), equation 14;
    Chi et al., "Diffusion Policy" (2023).

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> class Still(TensorDictModuleBase):
        ...     in_keys, out_keys = ["state"], ["action_chunk"]
        ...     chunk_key = "action_chunk"
        ...
        ...     def denoising_errors(self, td, num_samples):
        ...         return td["action_chunk"] ** 2
        >>> batch = TensorDict(
        ...     state=torch.zeros(1, 3),
        ...     action_chunk=torch.tensor([[[2.0], [torch.nan]]]),
        ...     action_is_pad=torch.tensor([[False, True]]),
        ... )
        >>> DiffusionBCLoss(Still())(batch)["loss_bc"]
        tensor(4.)
    """

    def __init__(
        self, actor_network: TensorDictModuleBase, *, num_samples: int = 1
    ) -> None:
        check_positive_int("DiffusionBCLoss", "num_samples", num_samples)
        super().__init__(actor_network, num_samples=num_samples)
