"""Shards of a policy's weights on several ranks (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
import torch.distributed as dist
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torchrl.objectives import LossModule

from torchrl_vla.errors import SettingsError

#: From this version on FSDP2 finds no tensor in a TensorDict that a module returns.
_BLIND_FROM = (2, 12)


def shard(
    policy: nn.Module,
    mesh: DeviceMesh | None = None,
    *,
    blocks: Sequence[nn.Module] | None = None,
) -> nn.Module:
    """Split the weights of a policy among the ranks, block by block, in place.

    The policy itself is not a block: FSDP2 starts its backward pass at the tensors that
    a module returns, and in PyTorch 2.13 it finds none in a TensorDict, so that a
    policy that is sharded at its root trains nothing, without an error. Parameters
    outside the blocks stay whole on every rank, and :func:`share_gradients` averages
    their gradients.

    Shard first, then make the loss and the optimizer.

    Args:
        policy: of the same weights on every rank.
        mesh: of one dimension; None = all ranks.

    Keyword Args:
        blocks: modules that are called, each gathered whole when it computes; None =
            the outermost modules that own a parameter themselves, as layers do. Give
            the layers of a large transformer, e.g. ``policy.model.layers``, so that
            each is gathered once.

    Returns:
        The policy.

    Raises:
        SettingsError: there is no process group; a block returns a TensorDict, or
            shares a weight with another one.

    Source: PyTorch's ``torch.distributed.fsdp.fully_shard``.
    """
    if not dist.is_initialized():
        raise SettingsError(
            "shard: expected a process group, got none. Start the training with "
            "torchrun, inside `with joined_ranks():`."
        )
    chosen = list(_owners(policy)) if blocks is None else list(blocks)
    for block in chosen:
        if block is policy or _returns_tensordict(block):
            raise SettingsError(
                "shard: expected blocks inside the policy, which return tensors, got "
                f"{type(block).__name__}. FSDP2 finds no tensor in a TensorDict, and "
                "nothing would be trained. Pass its layers as blocks."
            )
    _check_apart(policy, chosen)
    if mesh is None:
        device = "cuda" if torch.cuda.is_available() and _has_nccl() else "cpu"
        mesh = init_device_mesh(device, (dist.get_world_size(),))
    for block in chosen:  # a scalar cannot be split
        scalars = {p for p in block.parameters() if not p.ndim}
        fully_shard(block, mesh=mesh, ignored_params=scalars)
    return policy


def is_sharded(module: nn.Module) -> bool:
    """Return whether a part of a module is sharded."""
    return any(isinstance(part, FSDPModule) for part in module.modules())


def check_shards(caller: str, module: nn.Module) -> None:
    """Refuse a module that is sharded so that it would train nothing.

    Args:
        caller: opens the error message.
        module: a policy or a loss.

    Raises:
        SettingsError: a part that returns a TensorDict is sharded, and this version of
            PyTorch finds no tensor in it.
    """
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < _BLIND_FROM:
        return
    for name, part in module.named_modules():
        if isinstance(part, FSDPModule) and _returns_tensordict(cast(nn.Module, part)):
            raise SettingsError(
                f"{caller}: expected shards of modules that return tensors, got "
                f"fully_shard on {name or 'the module itself'!r} "
                f"({type(part).__name__}), which returns a TensorDict. PyTorch "
                f"{torch.__version__} finds no tensor in it and trains nothing. Shard "
                "with torchrl_vla.distributed.shard(policy)."
            )


def copy_full_weights(sharded: nn.Module, whole: nn.Module) -> None:
    """Copy the weights and buffers of a sharded module into a whole one.

    Every rank takes part.

    Args:
        sharded: holds the weights.
        whole: of the same class and sizes; overwritten in place.
    """
    stored = whole.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, value in sharded.state_dict(keep_vars=True).items():
            if isinstance(value, Tensor):
                stored[name].copy_(full(value))


def full(tensor: Tensor) -> Tensor:
    """Return the whole of a sharded tensor; others as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a sharded tensor; others as they are."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_like(parameter: Tensor, part: Tensor) -> Tensor:
    """Return this rank's part as the shard of a tensor that is sharded alike."""
    if not isinstance(parameter, DTensor):
        return part
    return DTensor.from_local(
        part,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def _owners(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the outermost modules that own a parameter and return tensors."""
    for child in module.children():
        if any(True for _ in child.parameters(recurse=False)) and not (
            _returns_tensordict(child)
        ):
            yield child
        else:
            yield from _owners(child)


def _returns_tensordict(module: nn.Module) -> bool:
    return isinstance(module, TensorDictModuleBase | LossModule)


def _check_apart(policy: nn.Module, blocks: Sequence[nn.Module]) -> None:
    names = {id(part): name for name, part in policy.named_modules()}
    owner: dict[int, nn.Module] = {}
    for block in blocks:
        for weight in block.parameters():
            other = owner.setdefault(id(weight), block)
            if other is not block:
                raise SettingsError(
                    "shard: expected blocks that share no weight, got one of "
                    f"{names.get(id(other))!r} and {names.get(id(block))!r}. Pass "
                    "blocks=[...] with a module that holds both."
                )


def _has_nccl() -> bool:
    return "nccl" in str(dist.get_backend_config())
