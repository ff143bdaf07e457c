"""Contract check of a transform."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from tensordict import (
    NestedKey,
    NonTensorStack,
    TensorDictBase,
    is_leaf_nontensor,
    is_non_tensor,
    unravel_key,
)
from torch import Tensor
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import EnvBase, Transform, TransformedEnv
from torchrl.envs.utils import check_env_specs

from torchrl_vla.schema import instruction_texts


def check_transform(
    transform: Transform,
    tensordict: TensorDictBase,
    *,
    reads: Sequence[NestedKey],
    writes: Sequence[NestedKey],
    env: EnvBase | None = None,
    tolerance: float = 1e-5,
) -> None:
    """Check that a transform does what its documentation says, wherever it is put.

    The contract: on data it reads only what it says and writes all of what it says and
    nothing else, into a new tensordict (the one that it is given may be the storage of
    a buffer); it remembers nothing from one batch to the next; what is written to a
    buffer is stored as it was given, and sampled as the transform of that; outside an
    environment its inverse does nothing. In an environment besides: the specs agree
    with the data, and the inverse of what it makes of data is what the robot gets.

    Args:
        transform: the transform; copies of it are attached to buffers and environments.
        tensordict: data with batch dimensions, as they would be sampled; left as is.

    Keyword Args:
        reads: the keys that it reads in these data.
        writes: the keys that it writes to them.
        env: environment whose actions it acts on; None = that is not checked.
        tolerance: how far inverse and forward may be apart (half a bin of a tokenizer).

    Raises:
        AssertionError: the contract is broken; the message says how.

    Examples:
        >>> from tensordict import TensorDict
        >>> class InPlace(Transform):
        ...     def forward(self, td):
        ...         return td.set("action", td["action"].mul_(2.0))
        >>> data = TensorDict({"action": torch.ones(3, 1)}, [3])
        >>> check_transform(InPlace(), data, reads=["action"], writes=["action"])
        Traceback (most recent call last):
        ...
        AssertionError: InPlace: expected its input at 'action' to keep its values, \
got others.
    """
    name = type(transform).__name__
    tensordict = tensordict.clone()
    reads, writes = ([unravel_key(key) for key in keys] for keys in (reads, writes))
    before = tensordict.clone()
    after = transform.forward(tensordict)
    _check_same(name, before, tensordict, "its input at {} to keep its values")
    if added := set(_keys(tensordict)) - set(_keys(before)):
        raise AssertionError(
            f"{name}: expected its input to keep its keys, got {_show(added)} added."
        )
    _check_keys(name, before, after, writes)
    asked = before.select(*reads)
    alone = transform.forward(asked).select(*writes)
    _check_same(name, alone, after, "{} to depend on what it reads alone")
    _other_batch(transform, before)
    again = transform.forward(before)
    _check_same(name, after, again, "{} to be the same after another batch")
    _check_same(name, before, transform.inv(before), "no inverse of {} outside an env")
    _check_buffer(name, transform, before, after)
    if env is not None:
        _check_env(name, transform, before, after, env, tolerance)


def _check_keys(
    name: str, before: TensorDictBase, after: TensorDictBase, writes: list[NestedKey]
) -> None:
    changed = {
        key
        for key in _keys(after)
        if key not in _keys(before) or not _equal(after.get(key), before.get(key))
    }
    missing = set(writes) - set(_keys(after))
    lost = set(_keys(before)) - set(_keys(after))
    if not changed <= set(writes) or missing or lost:
        raise AssertionError(
            f"{name}: expected to write {_show(writes)} and nothing else, got "
            f"{_show(changed)} written, {_show(lost)} removed."
        )


def _other_batch(transform: Transform, data: TensorDictBase) -> None:
    """Show the transform the same data in another order."""
    transform.forward(data.flip(0))


def _check_buffer(
    name: str, transform: Transform, before: TensorDictBase, after: TensorDictBase
) -> None:
    storage = LazyTensorStorage(len(before))
    buffer = TensorDictReplayBuffer(
        storage=storage, transform=transform.clone(), batch_size=len(before)
    )
    buffer.extend(before.copy())
    _check_same(name, before, storage[:], "a buffer to store {} as it was given")
    sample = buffer[:]
    _check_same(name, after, sample, "a buffer to give the transformed {}")
    _check_same(name, before, storage[:], "sampling to leave {} in the storage")


def _check_env(
    name: str,
    transform: Transform,
    before: TensorDictBase,
    after: TensorDictBase,
    env: EnvBase,
    tolerance: float,
) -> None:
    transformed = TransformedEnv(env, transform.clone())
    check_env_specs(transformed)
    said = [unravel_key(key) for key in transform.out_keys_inv]
    robot = [unravel_key(key) for key in transform.in_keys_inv]
    got = transformed.transform.inv(after.select(*said))
    for key in robot:
        expected, value = before.get(key), got.get(key)
        if not torch.allclose(value, expected, rtol=0, atol=tolerance):
            raise AssertionError(
                f"{name}: expected the environment's inverse to give back {key!r} "
                f"within {tolerance:g}, got a difference of "
                f"{(value - expected).abs().max().item():g}."
            )


def _check_same(
    name: str, expected: TensorDictBase, got: TensorDictBase, what: str
) -> None:
    for key in _keys(expected):
        value = got.get(key, None)
        if value is None or not _equal(expected.get(key), value):
            raise AssertionError(
                f"{name}: expected {what.format(repr(key))}, got others."
            )


def _keys(tensordict: TensorDictBase) -> list[NestedKey]:
    return list(tensordict.keys(True, True, is_leaf=is_leaf_nontensor))


def _equal(value: Tensor | NonTensorStack, other: Tensor | NonTensorStack) -> bool:
    if is_non_tensor(value) or is_non_tensor(other):
        return instruction_texts(value) == instruction_texts(other)
    same = value.shape == other.shape and value.dtype == other.dtype
    return same and torch.equal(value, other)


def _show(keys: Iterable[object]) -> list[str]:
    return sorted(map(str, keys))
