"""Arguments of TorchRL's classes, accepted where ours mean the same."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeVar

from torchrl_vla.errors import SettingsError

_T = TypeVar("_T", bound=Callable[..., object])


def torchrl_spellings(
    *,
    records: Mapping[str, tuple[type, Mapping[str, str]]] = MappingProxyType({}),
    same: Mapping[str, tuple[object, ...]] = MappingProxyType({}),
    instead: Mapping[str, str] = MappingProxyType({}),
) -> Callable[[_T], _T]:
    """Let a class or function take arguments by the names that TorchRL gives them.

    Its signature remains ours.

    Keyword Args:
        records: our argument that is a record, to its class and to TorchRL's names of
            its fields. TorchRL's lists of keys must hold one.
        same: TorchRL's name to the values that mean what ours does anyway.
        instead: TorchRL's name to what replaces its other values.

    Raises:
        SettingsError: on a call, where an argument of TorchRL's means something else
            than ours, or stands beside the record that it is a field of.

    Examples:
        >>> @torchrl_spellings(same={"dim": (0,)}, instead={"dim": "values.T"})
        ... def first(values):
        ...     return values[0]
        >>> first([5, 7], dim=0)
        5
        >>> first([5, 7], dim=1)
        Traceback (most recent call last):
        ...
        torchrl_vla.errors.SettingsError: first: expected no argument 'dim', got 1. \
Instead: values.T.
    """
    fields = {theirs for _, names in records.values() for theirs in names}
    foreign = {*same, *instead}

    def accept(target: _T) -> _T:
        of_class = inspect.isclass(target)
        function = vars(target)["__init__"] if of_class else target
        caller = target.__name__

        @functools.wraps(function)
        def read(*args: object, **options: object) -> object:
            for name in sorted(foreign.intersection(options)):
                if options[name] in same.get(name, ()):
                    del options[name]
                elif name not in fields:
                    raise SettingsError(
                        f"{caller}: expected no argument {name!r}, got "
                        f"{options[name]!r}. Instead: {instead[name]}."
                    )
            for argument, (kind, names) in records.items():
                given = sorted(set(names).intersection(options))
                if not given:
                    continue
                if options.get(argument) is not None:
                    raise SettingsError(
                        f"{caller}: expected {argument}= alone, got {given} as "
                        "arguments of their own beside it. Name them in "
                        f"{kind.__name__}(...)."
                    )
                values = {
                    name: _only(caller, name, options.pop(name)) for name in given
                }
                options[argument] = kind(
                    **{names[name]: value for name, value in values.items()}
                )
            return function(*args, **options)

        if not of_class:
            return read  # type: ignore[return-value]
        target.__init__ = read  # type: ignore[method-assign, assignment]
        return target

    return accept


def _only(caller: str, name: str, value: object) -> object:
    """Return the key of TorchRL's list of one key, and anything else as it is."""
    match value:
        case list([only]):
            return only
        case list():
            raise SettingsError(
                f"{caller}: expected one key in {name}, got {value}. Make one {caller} "
                "for each."
            )
    return value
