"""Behavior cloning loss of flow policies."""

from __future__ import annotations

from tensordict.nn import TensorDictModuleBase

from torchrl_vla.objectives.denoising_loss import DenoisingLoss
from torchrl_vla.schema import check_positive_int


class FlowMatchingLoss(DenoisingLoss):
    """Train a flow's velocity along straight lines from noise to the expert's chunk.

    The mean of ``(velocity(x_t, t) - (data - noise))^2`` over valid elements, with
    ``x_t = (1 - t) noise + t data`` for one time and one noise per sample. Padding and
    randomness: see :class:`DenoisingLoss`; keys and errors: see
    :class:`ElementwiseCloningLoss`.

    **Reads** the policy's ``in_keys``, ``action_chunk`` and ``action_is_pad``;
    **writes** ``loss_bc``.

    Args:
        actor_network: policy with ``denoising_errors`` (``FlowVLAWrapper``).

    Keyword Args:
        time_alpha: ``1 - t`` follows Beta(time_alpha, 1): 1 is uniform, 1.5
            samples noisy times more often, as pi0 does. None = as the policy has it,
            1 where it has nothing else.
        num_samples: times and noises per frame. The observation is encoded once for
            all of them, so more samples reduce the gradient's variance at little cost.

    Raises:
        ValueError: ``time_alpha`` or ``num_samples`` is not positive.

    Source: Lipman et al., "Flow Matching for Generative Modeling" (2023); Black et
    al., "pi0" (2024), for the times.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> class Still(TensorDictModuleBase):
        ...     in_keys, out_keys = ["state"], ["action_chunk"]
        ...     chunk_key = "action_chunk"
        ...
        ...     def denoising_errors(self, td, **options):
        ...         return td["action_chunk"] ** 2
        >>> batch = TensorDict(
        ...     state=torch.zeros(1, 3),
        ...     action_chunk=torch.tensor([[[2.0], [torch.nan]]]),
        ...     action_is_pad=torch.tensor([[False, True]]),
        ... )
        >>> FlowMatchingLoss(Still())(batch)["loss_bc"]
        tensor(4.)
    """

    def __init__(
        self,
        actor_network: TensorDictModuleBase,
        *,
        time_alpha: float | None = None,
        num_samples: int = 1,
    ) -> None:
        if time_alpha is not None and not time_alpha > 0:
            raise ValueError(
                "FlowMatchingLoss: expected a positive time_alpha, got "
                f"{time_alpha}. 1 samples times uniformly."
            )
        check_positive_int("FlowMatchingLoss", "num_samples", num_samples)
        own = {} if time_alpha is None else {"time_alpha": float(time_alpha)}
        super().__init__(actor_network, num_samples=num_samples, **own)
