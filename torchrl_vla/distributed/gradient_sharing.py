"""Gradient of the global batch, on every rank."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torchrl.objectives import LossModule

from torchrl_vla.distributed.ranks import Ranks
from torchrl_vla.distributed.sharding import check_shards, full, is_sharded

_LossOf = Callable[[TensorDictBase], Tensor]
Section = Callable[[str], AbstractContextManager[object]]


class GradientSharing:
    """Losses whose gradients become the mean over the ranks; alone, as they are.

    Args:
        loss: returns the scalar that is minimized.
        section: context of the passes named ``"forward"`` and ``"backward"``, such as
            a profiler's.

    Examples:
        >>> weight = torch.nn.Parameter(torch.ones(()))
        >>> gradients = GradientSharing(lambda batch: (weight * batch["x"]).mean())
        >>> gradients.backward({"x": torch.tensor([1.0, 3.0])}).item()
        2.0
        >>> weight.grad.item()
        2.0
    """

    def __init__(self, loss: _LossOf, section: Section = nullcontext) -> None:
        self.loss, self.section = loss, section

    def backward(
        self,
        batch: TensorDictBase,
        weight: float | Tensor = 1.0,
        *,
        more_to_come: bool = False,
    ) -> Tensor:
        """Accumulate the gradient of ``weight * loss(batch)``; return that value.

        Args:
            batch: of this rank.
            weight: a factor.

        Keyword Args:
            more_to_come: True = another part of the batch follows, so the ranks do not
                exchange gradients yet.
        """
        with self._kept_local() if more_to_come else nullcontext():
            with self.section("forward"):
                value = self.loss(batch)
                value = value * torch.as_tensor(weight).to(value)
            with self.section("backward"):
                value.backward()
                if not more_to_come:
                    self._finish()
        return value.detach()

    def _kept_local(self) -> AbstractContextManager[object]:
        return nullcontext()

    def _finish(self) -> None:
        """Exchange what the backward pass did not."""


class _Replicated(GradientSharing):
    """Gradients by ``DistributedDataParallel``."""

    def __init__(self, loss: nn.Module, section: Section) -> None:
        device = next(loss.parameters()).device
        ids = [device.index] if device.type == "cuda" else None
        self.replicas = DistributedDataParallel(loss, device_ids=ids)
        super().__init__(self.replicas, section)

    def _kept_local(self) -> AbstractContextManager[object]:
        return self.replicas.no_sync()


class _Sharded(GradientSharing):
    """Gradients of FSDP2's blocks, and of the weights that are whole on every rank."""

    def __init__(
        self, loss: nn.Module, section: Section, policy: nn.Module, ranks: Ranks
    ) -> None:
        super().__init__(loss, section)
        self.ranks = ranks
        self.blocks = [
            part for part in policy.modules() if isinstance(part, FSDPModule)
        ]
        self.whole = [p for p in policy.parameters() if not isinstance(p, DTensor)]

    @contextmanager
    def _kept_local(self) -> Iterator[None]:
        self._exchange(False)
        try:
            yield
        finally:
            self._exchange(True)

    def _exchange(self, value: bool) -> None:
        for block in self.blocks:
            block.set_requires_gradient_sync(value)

    def _finish(self) -> None:
        average_gradients(self.whole, self.ranks)


class TotalLoss(nn.Module):
    """Sum of the losses of a loss module, as a module that returns a tensor.

    What wraps one module, such as ``DistributedDataParallel``, ``accelerate`` or Ray
    Train, wraps this one: the weights that it holds are the policy's own.

    Args:
        loss_module: its entries ``loss_*`` are added.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule
        >>> from torchrl_vla.objectives import BCLoss
        >>> network = torch.nn.Sequential(
        ...     torch.nn.Linear(2, 6), torch.nn.Unflatten(-1, (3, 2))
        ... )
        >>> state = ("observation", "state")
        >>> policy = TensorDictModule(network, [state], ["action_chunk"])
        >>> loss = TotalLoss(BCLoss(policy))
        >>> batch = TensorDict(
        ...     {
        ...         "observation": {"state": torch.randn(4, 2)},
        ...         "action_chunk": torch.randn(4, 3, 2),
        ...         "action_is_pad": torch.zeros(4, 3, dtype=torch.bool),
        ...     },
        ...     [4],
        ... )
        >>> loss(batch).shape
        torch.Size([])
    """

    def __init__(self, loss_module: LossModule) -> None:
        super().__init__()
        self.loss_module = loss_module

    def forward(self, batch: TensorDictBase) -> Tensor:
        """Return the sum of the losses of a batch, a scalar."""
        return total_loss(self.loss_module, batch)


def total_loss(loss_module: LossModule, batch: TensorDictBase) -> Tensor:
    """Return the sum of the losses of a batch."""
    out = loss_module(batch)
    names = [name for name in loss_module.out_keys if name.startswith("loss_")]
    return sum(out.get(name) for name in names)


def share_gradients(
    policy: nn.Module,
    loss_module: LossModule,
    ranks: Ranks,
    section: Section = nullcontext,
) -> GradientSharing:
    """Return the losses of a loss module with gradients of all ranks.

    Args:
        policy: is trained; sharded (:func:`shard`) or the same on every rank.
        loss_module: made from the policy; the sum of its losses is minimized.
        ranks: that train it.
        section: of :class:`GradientSharing`.

    Raises:
        SettingsError: the policy is sharded so that it would train nothing.
    """
    check_shards("share_gradients", policy)
    loss = TotalLoss(loss_module)
    if is_sharded(policy):
        return _Sharded(loss, section, policy, ranks)
    if ranks.is_alone:
        return GradientSharing(loss, section)
    return _Replicated(loss, section)


def average_gradients(parameters: Iterable[Tensor], ranks: Ranks) -> None:
    """Replace gradients by their means over the ranks.

    A parameter without a gradient on some ranks counts as zero there; one without a
    gradient on all of them keeps none.
    """
    if ranks.is_alone:
        return
    parameters = list(parameters)
    if not parameters:
        return
    device = parameters[0].device
    has = torch.tensor([float(p.grad is not None) for p in parameters], device=device)
    used = [p for p, n in zip(parameters, ranks.total(has), strict=True) if n > 0]
    for parameter in used:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for dtype in dict.fromkeys(p.dtype for p in used):
        gradients = [p.grad for p in used if p.dtype == dtype and p.grad is not None]
        flat = ranks.mean(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def clip_gradients(parameters: Iterable[Tensor], limit: float) -> Tensor:
    """Clip gradients to a norm over all of them; return the norm before, a scalar.

    As ``torch.nn.utils.clip_grad_norm_``, also where some weights are sharded and
    others are not.
    """
    parameters = list(parameters)
    sharded = [p for p in parameters if isinstance(p, DTensor)]
    if not sharded:
        return nn.utils.clip_grad_norm_(parameters, limit)
    whole = [p for p in parameters if not isinstance(p, DTensor)]
    norms = []
    for group in (sharded, whole):
        found = [p.grad for p in group if p.grad is not None]
        if found:
            norms.append(full(nn.utils.get_total_norm(found)))
    norm = torch.linalg.vector_norm(torch.stack(norms))
    for group in (sharded, whole):
        nn.utils.clip_grads_with_norm_(group, limit, norm)
    return norm
