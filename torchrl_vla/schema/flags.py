"""Reading of yes-or-no answers and rewards that come from a simulator."""

from __future__ import annotations

import numpy as np
import torch
from tensordict import NestedKey
from torch import Tensor

from torchrl_vla.errors import SchemaError

_LARGEST = torch.finfo(torch.float32).max
_REMEDIES = {
    "success": "Say when the task is achieved with success=lambda obs, reward, "
    "terminated, info: ..., which returns a bool, instead of success_key in "
    "SimulatorInterface.",
    "other": "Wrap the simulator, to return a bool.",
}


def read_flag(caller: str, name: str, value: object) -> bool:
    """Return a yes-or-no answer, or refuse it.

    Nothing is judged by its truth value: 0.02, ``"False"`` and NaN are all true in
    Python.

    Args:
        caller: opens the error message.
        name: of the answer, for the error message.
        value: a bool, 0 or 1 in any dtype, or an array of one of these.

    Raises:
        SchemaError: it is something else; says how to declare success.

    Examples:
        >>> import numpy as np
        >>> read_flag("Demo", "success", np.array([1.0]))
        True
        >>> read_flag("Demo", "success", 0.02)
        Traceback (most recent call last):
        ...
        torchrl_vla.errors.SchemaError: Demo: expected a bool, 0 or 1 at success, \
got 0.02 (float). Say when the task is achieved with success=lambda obs, reward, ...
    """
    if value is True or value is False:
        return value
    number = _number(value)
    if number not in (0.0, 1.0):
        remedy = _REMEDIES["success" if "success" in name else "other"]
        raise SchemaError(
            f"{caller}: expected a bool, 0 or 1 at {name}, got {_shown(value)}. "
            f"{remedy}"
        ).fatal()
    return bool(number)


def read_number(caller: str, name: str, value: object) -> float:
    """Return a finite number that float32 can hold, such as a reward, or refuse it.

    Args:
        caller: opens the error message.
        name: of the number, for the error message.
        value: a number, or an array of one.

    Raises:
        SchemaError: it is something else.

    Examples:
        >>> read_number("Demo", "the reward", [0.5])
        0.5
    """
    number = value if type(value) is float else _number(value)
    if number is None or not abs(number) <= _LARGEST:
        raise SchemaError(
            f"{caller}: expected one finite number at {name}, got {_shown(value)}. The "
            "simulation diverged, or the number is undefined."
        )
    return number


def read_flags(caller: str, key: NestedKey, value: Tensor) -> Tensor:
    """Return the flags of a batch as bool, or refuse them.

    Args:
        caller: opens the error message.
        key: of the flags, for the error message.
        value: bool, or 0 and 1 in any dtype, ``[*B, 1]`` or ``[*B]``.

    Raises:
        SchemaError: there is another number among them.

    Examples:
        >>> read_flags("Demo", "success", torch.tensor([[1.0], [0.0]])).flatten()
        tensor([ True, False])
    """
    if value.dtype is torch.bool:
        return value
    other = (value != 0) & (value != 1)
    if other.any():
        raise (
            SchemaError(
                f"{caller}: expected bool, or 0 and 1, at {key!r}, got "
                f"{value[other][0].item()} in {value.dtype}. A share of a task is no "
                "success: let the environment compare it, and write a bool."
            )
            .at_envs(other)
            .fatal()
        )
    return value.bool()


def _number(value: object) -> float | None:
    """Return the one real number in a value; None = there is none."""
    try:
        array = np.asarray(value.cpu() if isinstance(value, Tensor) else value)
        if array.dtype.kind in "biuf" and array.size == 1:
            return float(array.item())
    except Exception:  # of the value's own conversion, which may be anything
        return None
    return None


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except Exception:
        text = "a value without a text"
    short = text if len(text) <= 80 else f"{text[:77]}..."
    return f"{short} ({type(value).__name__})"
