"""Check of actions before an environment, executor or guard passes them on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torchrl.data import TensorSpec

from torchrl_vla.errors import MissingKeyError, SchemaError, VLAError
from torchrl_vla.schema.keys import ACTION_CHUNK_KEY, ACTION_KEY

_LISTED = 8
_REFUSED = (torch.bool, torch.complex32, torch.complex64, torch.complex128)


def check_actions(
    caller: str,
    key: NestedKey,
    actions: Tensor,
    batch_size: Sequence[int],
    sizes: Sequence[int | None],
    *,
    rows: Tensor | None = None,
    error: type[VLAError] = SchemaError,
) -> None:
    """Refuse actions that are not finite numbers of the right shape.

    Nothing is broadcast, padded or repaired. One number is read back from the actions'
    device; the rest only in an error.

    Args:
        caller: opens the error message.
        key: of the actions, for the error message.
        actions: real numbers of any dtype, ``[*B, A]`` or ``[*B, H, A]``.
        batch_size: ``*B``.
        sizes: ``(A,)`` or ``(H, A)``; None = any size of at least one.
        rows: bool ``[*B]``, the env indices whose numbers are executed; None = all.
        error: its type.

    Raises:
        SchemaError: another type, dtype or shape; or numbers that are not finite, with
            the first of their places. ``error``, if that is given.

    Examples:
        >>> check_actions("Demo", "action", torch.ones(1, 2).bfloat16(), [1], [2])
        >>> check_actions("Demo", "action", torch.ones(1, 1), [1], [2])
        Traceback (most recent call last):
        ...
        torchrl_vla.errors.SchemaError: Demo: expected actions [*B, A] with *B = [1], \
A = 2 at 'action', got [1, 1]. Nothing is broadcast: let the policy write one number \
per environment and action dimension. No action was sent.
    """
    wanted = [*batch_size, *sizes]
    try:
        shape, dtype, device = list(actions.shape), actions.dtype, actions.device.type
        problem = f"{dtype} on {device}"
        is_legal = dtype not in _REFUSED and device != "meta"
    except AttributeError:
        is_legal, problem = False, type(actions).__name__
    if not is_legal:
        raise error(
            f"{caller}: expected a tensor of real numbers at {key!r}, got {problem}. "
            "Let the policy write float32, with its weights on a real device. No "
            "action was sent."
        )
    if len(shape) != len(wanted) or any(
        got < 1 if size is None else got != size
        for got, size in zip(shape, wanted, strict=True)
    ):
        kind = "actions [*B, A]" if len(sizes) == 1 else "a chunk [*B, H, A]"
        known = [f"*B = {list(batch_size)}"]
        letters = "HA"[-len(sizes) :]
        known += [f"{x} = {n}" for x, n in zip(letters, sizes, strict=True) if n]
        raise error(
            f"{caller}: expected {kind} with {', '.join(known)} at {key!r}, got "
            f"{shape}. Nothing is broadcast: let the policy write one number per "
            "environment and action dimension. No action was sent."
        )
    # A float64 may be too large for the float32 that is executed.
    numbers = actions.to(torch.float32) if dtype == torch.float64 else actions
    bad = ~numbers.isfinite() & _like(rows, numbers, len(sizes))
    if bad.any():
        found = _describe(actions, bad, len(batch_size))
        raise error(
            f"{caller}: expected finite actions at {key!r}, got {found}. Look at the "
            "policy's inputs and weights, and at the statistics that denormalize its "
            "actions. No action was sent."
        ).at_envs(bad.flatten(len(batch_size)).any(-1))


def read_action(
    caller: str,
    tensordict: TensorDictBase,
    batch_size: Sequence[int],
    width: int,
    *,
    rows: Tensor | None = None,
) -> Tensor:
    """Return the action that an environment is to execute, float32 ``[*B, A]``.

    Args:
        caller: opens the error message.
        tensordict: of a step.
        batch_size: ``*B``.
        width: ``A``.
        rows: see :func:`check_actions`.

    Raises:
        MissingKeyError: there is none; says what to do with a chunk.
        SchemaError: see :func:`check_actions`.
    """
    action = tensordict.get(ACTION_KEY, None)
    if action is None:
        raise MissingKeyError(
            f"{caller}: expected the policy to write {ACTION_KEY!r} [*B, A], got only "
            f"{sorted(map(str, tensordict.keys(True, True)))}. "
            f"{advise_on_action([ACTION_KEY], tensordict)} No action was sent."
        )
    check_actions(caller, ACTION_KEY, action, batch_size, [width], rows=rows)
    return action.to(torch.float32)


def check_action_of(
    caller: str, key: NestedKey, leaf: TensorSpec, step: TensorDictBase
) -> None:
    """Refuse an action that is not what an environment's action spec says.

    Environments of others broadcast, truncate or execute what they get. A float action
    is converted to the dtype of the spec. Bounds are not checked here.

    Args:
        caller: opens the error message.
        key: of the action.
        leaf: its spec; sizes of -1 are not checked.
        step: ``[*B]``, holds the action.

    Raises:
        SchemaError: see :func:`check_actions`; or a float where the spec has whole
            numbers or flags.
    """
    action = step.get(key)
    sizes = [None if n < 0 else n for n in leaf.shape[step.ndim :]]
    if leaf.dtype.is_floating_point and 1 <= len(sizes) <= 2:
        check_actions(caller, key, action, step.batch_size, sizes)
        step.set(key, action.to(leaf.dtype))
        return
    is_like = action.dtype.is_floating_point == leaf.dtype.is_floating_point
    if (
        not is_like
        or action.ndim != len(leaf.shape)
        or any(
            size not in (-1, got)
            for size, got in zip(leaf.shape, action.shape, strict=True)
        )
    ):
        raise SchemaError(
            f"{caller}: expected {leaf.dtype} {list(leaf.shape)} at {key!r}, as the "
            f"environment's action spec says, got {action.dtype} {list(action.shape)}. "
            "Nothing is broadcast or rounded: let the policy write what the spec says. "
            "No action was sent."
        )


def advise_on_action(missing: Sequence[NestedKey], tensordict: TensorDictBase) -> str:
    """Return what to do with a policy that did not write the action of a step.

    Args:
        missing: keys that the environment reads and the policy did not write.
        tensordict: what the policy returned.
    """
    if tensordict.get(ACTION_CHUNK_KEY, None) is not None and ACTION_KEY in missing:
        return (
            f"It writes {ACTION_CHUNK_KEY!r}: wrap it in MultiStepActorWrapper, or in "
            "space.executor(policy) if it was trained in a ModelSpace, or append "
            "MultiAction to the environment."
        )
    return "Check its out_keys."


def round_actions(
    caller: str,
    actions: Tensor,
    low: Sequence[float],
    high: Sequence[float],
    *,
    rows: Tensor | None = None,
) -> Tensor:
    """Round the actions ``[*B, A]`` of an integer action space: 1.9 becomes 2.

    Args:
        caller: opens the error message.
        actions: as :func:`read_action` returns them.
        low: smallest number per dimension.
        high: largest number per dimension.
        rows: see :func:`check_actions`.

    Returns:
        Whole numbers in float64 ``[*B, A]``.

    Raises:
        SchemaError: a rounded number is out of range.

    Examples:
        >>> round_actions("Demo", torch.tensor([[1.9, 0.2]]), [0, 0], [2, 2])
        tensor([[2., 0.]], dtype=torch.float64)
    """
    rounded = actions.to(torch.float64).round()
    bounds = torch.tensor([list(low), list(high)], dtype=torch.float64)
    bad = (rounded < bounds[0]) | (rounded > bounds[1])
    bad = bad & _like(rows, bad, 1)
    if bad.any():
        raise SchemaError(
            f"{caller}: expected whole numbers {list(low)} .. {list(high)} at "
            f"{ACTION_KEY!r}, got {_describe(actions, bad, actions.ndim - 1)}. An "
            "integer action is a choice, which is not clipped: let the policy write "
            "one of them. No action was sent."
        ).at_envs(bad.any(-1))
    return rounded


def describe_place(place: list[int], has_steps: bool = True) -> str:
    """Name an index of a chunk ``[*B, H, A]`` or, without steps, an action ``[*B, A]``.

    Examples:
        >>> describe_place([3, 0, 1])
        'env index 3, step 0, dimension 1'
    """
    *env, dim = place
    step = f"step {env.pop()}, " if has_steps else ""
    where = f"env index {', '.join(map(str, env))}, " if env else ""
    return f"{where}{step}dimension {dim}"


def _like(rows: Tensor | None, actions: Tensor, dims: int) -> Tensor:
    """Return env indices as a mask that broadcasts with the actions; None = all."""
    if rows is None:
        return torch.ones((), dtype=torch.bool, device=actions.device)
    shape = (*actions.shape[: actions.ndim - dims], *[1] * dims)
    return rows.to(actions.device).reshape(shape)


def _describe(actions: Tensor, bad: Tensor, batch_dims: int) -> str:
    places = bad.nonzero().tolist()
    has_steps = actions.ndim > batch_dims + 1
    found = [
        f"{actions[tuple(place)].item()} at {describe_place(place, has_steps)}"
        for place in places[:_LISTED]
    ]
    if len(places) > _LISTED:
        found.append(f"{len(places) - _LISTED} more")
    return "; ".join(found)
