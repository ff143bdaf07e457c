"""Base class of the cloning losses of denoising policies."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_vla.objectives.elementwise_cloning import ElementwiseCloningLoss
from torchrl_vla.objectives.sample_weights import counts_in_loss
from torchrl_vla.schema import SchemaError


class DenoisingLoss(ElementwiseCloningLoss):
    """Take the mean of a policy's denoising errors over valid elements.

    Abstract: base of :class:`FlowMatchingLoss` and :class:`DiffusionBCLoss`. The
    policy samples times and noise from PyTorch's global generator (seed it to repeat a
    value) and returns the squared errors of its regression. A padded position, and a
    sample of weight 0, enters the network as 0 with noise: the target there has no
    influence, not even as NaN.

    Args:
        actor_network: policy whose ``denoising_errors(tensordict, ...)`` returns the
            squared errors ``[*B, H, A]`` for the target at its ``chunk_key``.

    Keyword Args:
        **options: passed to ``denoising_errors``.
    """

    def __init__(self, actor_network: TensorDictModuleBase, **options: float) -> None:
        super().__init__()
        if not callable(getattr(actor_network, "denoising_errors", None)):
            raise TypeError(
                f"{type(self).__name__}: expected a policy with a denoising head "
                "(denoising_errors(tensordict) -> [*B, H, A]) at argument "
                f"'actor_network', got {type(actor_network).__name__}. Use BCLoss for "
                "a policy that predicts the chunk itself."
            )
        self.convert_to_functional(actor_network, "actor_network")
        self._options = options

    def _check_target(self, target: Tensor) -> None:
        if not target.is_floating_point():
            raise SchemaError(
                f"{type(self).__name__}: expected float actions at "
                f"{self.tensor_keys.action!r}, got {target.dtype}. Use TokenBCLoss to "
                "clone action tokens."
            )

    def _losses(
        self,
        tensordict: TensorDictBase,
        target: Tensor,
        valid: Tensor,
        weight: Tensor | None,
    ) -> Tensor:
        # The network reads the noised target, which must not depend on the padding.
        seen = torch.where(counts_in_loss(valid, weight), target, 0.0)
        batch = tensordict.copy().set(self.actor_network.chunk_key, seen)
        return self.actor_network.denoising_errors(batch, **self._options)
