"""Placement of a transform: in an environment, on a replay buffer, or nowhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tensordict import NestedKey, TensorDictBase, unravel_key
from torchrl.envs import Compose, Transform, TransformedEnv


def acts_in_environment(transform: Transform) -> bool:
    """Tell a transform of an environment from one of a buffer, or of nothing.

    A buffer calls the inverse of its transforms on what is written to it; it must not
    reach them as a policy's action. Nested ``Compose`` are looked through.
    """
    try:
        return transform.container is not None
    except ValueError:  # TorchRL's answer for a container that is no environment
        return False


def chain_of(transform: Transform) -> list[Transform]:
    """Return all transforms that data pass together with one, the innermost first.

    Nested ``Compose`` and nested transformed environments are flattened.
    """
    top, environment = transform, None
    while (reference := top.__dict__.get("_container")) is not None:
        container = reference()
        if not isinstance(container, Transform):
            environment = container
            break
        top = container
    chain = list(_leaves(top))
    while isinstance(environment, TransformedEnv):
        environment = environment.base_env
        if isinstance(environment, TransformedEnv):
            chain = [*_leaves(environment.transform), *chain]
    return chain


def _leaves(transform: Transform) -> Iterator[Transform]:
    if isinstance(transform, Compose):
        for part in transform.transforms:
            yield from _leaves(part)
    else:
        yield transform


def convert_next(
    tensordict: TensorDictBase, keys: Sequence[NestedKey], convert: Callable[[Any], Any]
) -> TensorDictBase:
    """Convert in place what sampled data hold under ``next``, if anything."""
    for key in keys:
        next_key = unravel_key(("next", key))
        value = tensordict.get(next_key, None)
        if value is not None:
            tensordict.set(next_key, convert(value))
    return tensordict


def environment_key(key: NestedKey, inner: list[Transform]) -> NestedKey:
    """Return the base environment's key of an action that a policy writes at ``key``.

    Args:
        key: the outer key, e.g. ``"action_chunk"``.
        inner: the transforms between the base environment and that key, in order.
    """
    key = unravel_key(key)
    for transform in reversed(inner):
        outer = [unravel_key(name) for name in transform.out_keys_inv]
        if key in outer and len(outer) == len(transform.in_keys_inv):
            key = unravel_key(transform.in_keys_inv[outer.index(key)])
    return key
