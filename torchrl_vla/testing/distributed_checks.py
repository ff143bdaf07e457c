"""Contract check of a policy and its loss on two ranks."""

from __future__ import annotations

import copy
import os
import socket
from collections.abc import Callable

import torch
from tensordict import TensorDictBase
from torch import Tensor, multiprocessing, nn
from torchrl.objectives import LossModule

from torchrl_vla.distributed import Ranks, joined_ranks, shard, share_gradients
from torchrl_vla.distributed.sharding import full

MakeLoss = Callable[[nn.Module], LossModule]


def check_distributed(
    policy: nn.Module,
    make_loss: MakeLoss,
    batch: TensorDictBase,
    *,
    count_elements: Callable[[LossModule, TensorDictBase], Tensor] | None = None,
    tolerance: float = 1e-5,
) -> None:
    """Check that a policy trains on two ranks as on one, replicated and sharded.

    Two processes (gloo, on the CPU) each take every other row of the batch. The
    contract: with ``DistributedDataParallel`` and with :func:`shard`, every parameter
    that requires a gradient gets that of the whole batch.

    Args:
        policy: can be pickled; on the CPU, without random numbers in its loss.
        make_loss: makes the loss of a policy; importable by name.
        batch: ``[N]`` with an even ``N``.

    Keyword Args:
        count_elements: what the loss's mean divides by; None = rows, or
            ``loss.count_elements`` where there is one.
        tolerance: largest difference of a gradient.

    Raises:
        AssertionError: the contract is broken; names the parameters.
        ValueError: the batch cannot be shared evenly.

    Examples:
        >>> from torchrl_vla.objectives import BCLoss
        >>> check_distributed(policy, BCLoss, batch)  # doctest: +SKIP
    """
    if len(batch) % 2:
        raise ValueError(
            f"check_distributed: expected an even number of rows, got {len(batch)}."
        )
    expected = _gradients(policy, make_loss, batch, count_elements, Ranks(), "alone")
    for parallel in ("ddp", "fsdp"):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        results = multiprocessing.get_context("spawn").SimpleQueue()
        arguments = (port, policy, make_loss, batch, count_elements, parallel, results)
        multiprocessing.spawn(_run, arguments, nprocs=2)
        for rank in range(2):
            _compare(results.get(), expected, f"{parallel}, rank {rank}", tolerance)


def _run(
    rank: int,
    port: int,
    policy: nn.Module,
    make_loss: MakeLoss,
    batch: TensorDictBase,
    count: Callable[[LossModule, TensorDictBase], Tensor] | None,
    parallel: str,
    results: multiprocessing.SimpleQueue,
) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with joined_ranks() as ranks:
        results.put(_gradients(policy, make_loss, batch, count, ranks, parallel))


def _gradients(
    policy: nn.Module,
    make_loss: MakeLoss,
    batch: TensorDictBase,
    count: Callable[[LossModule, TensorDictBase], Tensor] | None,
    ranks: Ranks,
    parallel: str,
) -> dict[str, list[float] | None]:
    """Return the gradient of each trainable parameter of the policy, as a list."""
    policy = copy.deepcopy(policy)
    policy.zero_grad()
    if parallel == "fsdp":
        shard(policy)
    loss = make_loss(policy)
    share = batch[ranks.rank :: ranks.count]
    own = torch.tensor(float(len(share)), dtype=torch.float64)
    counted = count or getattr(type(loss), "count_elements", None)
    if counted is not None:
        own = counted(loss, share).double()
    sharing = share_gradients(policy, loss, ranks)
    sharing.backward(share, own / ranks.mean(own))
    return {
        name: None if p.grad is None else full(p.grad).flatten().tolist()
        for name, p in policy.named_parameters()
        if p.requires_grad
    }


def _compare(
    found: dict[str, list[float] | None],
    expected: dict[str, list[float] | None],
    where: str,
    tolerance: float,
) -> None:
    wrong = {}
    for name, gradient in expected.items():
        other = found.get(name)
        if gradient is None or other is None:
            if gradient is not other:
                wrong[name] = "no gradient" if other is None else "a gradient"
            continue
        error = (torch.tensor(gradient) - torch.tensor(other)).abs().max().item()
        if not error <= tolerance:
            wrong[name] = f"off by {error:g}"
    if wrong:
        raise AssertionError(
            f"check_distributed ({where}): expected the gradients of the whole batch, "
            f"got others: {wrong}."
        )
