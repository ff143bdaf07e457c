"""Behavior cloning of a policy that denoises by diffusion."""

from __future__ import annotations

from tensordict.nn import TensorDictModuleBase

from torchrl_vla.objectives.denoising_samples import DenoisingLoss
from torchrl_vla.schema import check_positive_int


class DiffusionBCLoss(DenoisingLoss):
    """Teach a diffusion head to find the noise in the expert's noised chunk.

    The mean of ``(predict_noise(x_l, l) - noise)^2`` over valid elements, for one noise
    level and one noise per row and draw. Both come from PyTorch's global generator:
    seed it to repeat a value. A padded position enters the network as 0 with noise, so
    the target there has no influence, not even as NaN.

    **Reads** the policy's ``in_keys``; ``action_chunk`` float ``[*B, H, A]``, the
    expert's; ``action_is_pad`` bool ``[*B, H]``, True = padded; with
    ``set_keys(dim_pad_mask="action_dim_is_pad")``, that mask bool ``[*B, A]`` of the
    dimensions that a row's robot lacks; with ``set_keys(weight="sample_weight")``,
    weights float ``[*B]`` of the rows, for a weighted mean. **Writes** ``loss_bc``, a
    scalar.

    Args:
        actor_network: policy whose ``denoising_errors(tensordict, ...)`` returns the
            squared errors ``[*B, H, A]`` for the target at its ``chunk_key``
            (``DiffusionVLAWrapper``).

    Keyword Args:
        num_samples: levels and noises per frame. The observation is encoded once for
            all of them, so where encoding takes the time, more samples give a steadier
            gradient at the same price.

    Raises:
        MissingKeyError: the chunk or the mask is not there.
        SchemaError: the mask is not a bool ``[*B, H]`` with a False in it, the batch
            has an ``action_dim_is_pad`` or a ``sample_weight`` that was not named, the
            weights are not finite and >= 0 with one above 0, or the target holds
            tokens.
        TypeError: the policy has no ``denoising_errors``.
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
