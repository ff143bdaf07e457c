"""Check of untrusted JSON and table rows against declared types."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints
from typing import cast as typing_cast

import torch
from torch import Tensor
from typing_extensions import is_typeddict

from torchrl_vla._internal.file_origin import Origin
from torchrl_vla.errors import VLAError

T = TypeVar("T")

_INT64 = 1 << 63
_NAMES: dict[object, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Tensor: "numbers",
}


def typed(value: object, kind: type[T], origin: Origin, at: str = "") -> T:
    """Return a value as the declared type, or refuse it by the key that is wrong.

    Understands ``bool``, ``int``, ``float``, ``str``, ``None``, unions, ``Literal``,
    lists, tuples and dicts of these, ``Tensor`` (nested lists of numbers, as float64),
    dataclasses (all keys must be theirs) and typed dictionaries (others are left out).
    An entry of a typed dictionary that may be None may be absent.

    Args:
        value: of JSON, or of a table.
        kind: the declared type.
        origin: of the value.
        at: the key of the value, for errors.

    Raises:
        VLAError: of ``origin.error``; the value is something else.

    Examples:
        >>> origin = Origin("Reader", "'info.json'", "Fetch it again.")
        >>> typed({"shape": [2, 3]}, dict[str, tuple[int, ...]], origin)
        {'shape': (2, 3)}
        >>> typed({"shape": ["two"]}, dict[str, tuple[int, ...]], origin)
        Traceback (most recent call last):
        ...
        torchrl_vla.errors.SchemaError: Reader: expected a whole number at 'shape[0]' \
in 'info.json', got 'two'. Fetch it again.
    """
    return typing_cast(T, _typed(value, kind, origin, at))


def _typed(value: object, kind: Any, origin: Origin, at: str) -> object:
    outer, inner = get_origin(kind), get_args(kind)
    if kind in (Any, object):
        return value
    if outer in (Union, types.UnionType):
        return _union(value, inner, origin, at)
    if outer is Literal:
        if value in inner:
            return value
        raise origin.refuse(f"one of {list(inner)}", repr(value), at)
    if outer in (list, Sequence):
        return _items(value, inner[0], origin, at)
    if outer is tuple:
        return _tuple(value, inner, origin, at)
    if outer in (dict, Mapping):
        return {
            key: _typed(item, inner[1], origin, _below(at, key))
            for key, item in _object(value, origin, at).items()
        }
    if is_typeddict(kind):
        return _entries(_object(value, origin, at), kind, origin, at)
    if is_dataclass(kind):
        return _dataclass(value, kind, origin, at)
    return _leaf(value, kind, origin, at)


def _leaf(value: object, kind: Any, origin: Origin, at: str) -> object:
    match value:
        case bool():
            fits = kind is bool
        case int() if kind is float and _INT64 <= abs(value) < 1 << 1000:
            fits, value = True, float(value)  # JSON has one kind of number
        case float() if kind is int:
            fits = value.is_integer() and abs(value) < _INT64
            value = int(value) if fits else value
        case int():
            fits = kind in (int, float) and -_INT64 <= value < _INT64
        case float():
            fits = kind is float
        case str():
            fits = kind is str
        case list() if kind is Tensor:
            with origin.reading(_NAMES[Tensor], at):
                return torch.tensor(value, dtype=torch.float64)
        case _:
            fits = kind is types.NoneType and value is None
    if not fits:
        raise origin.refuse(_NAMES.get(kind, "nothing"), _shown(value), at)
    return value


def _union(value: object, kinds: Sequence[Any], origin: Origin, at: str) -> object:
    problems = []
    for kind in sorted(kinds, key=lambda kind: kind is types.NoneType):
        if value is None and types.NoneType in kinds:
            return None
        try:
            return _typed(value, kind, origin, at)
        except VLAError as error:
            problems.append(error)
    raise problems[0]


def _items(value: object, kind: Any, origin: Origin, at: str) -> list[object]:
    match value:
        case list() | tuple():
            return [
                _typed(item, kind, origin, f"{at}[{i}]") for i, item in enumerate(value)
            ]
    raise origin.refuse("a list", _shown(value), at)


def _tuple(value: object, kinds: Sequence[Any], origin: Origin, at: str) -> object:
    if kinds[-1] is Ellipsis:
        return tuple(_items(value, kinds[0], origin, at))
    items = _items(value, object, origin, at)
    if len(items) != len(kinds):
        raise origin.refuse(f"a list of {len(kinds)}", f"{len(items)} entries", at)
    return tuple(
        _typed(item, kind, origin, f"{at}[{i}]")
        for i, (item, kind) in enumerate(zip(items, kinds, strict=True))
    )


def _object(value: object, origin: Origin, at: str) -> dict[str, object]:
    match value:
        case dict() if all(type(key) is str for key in value):
            return value
    raise origin.refuse("an object", _shown(value), at)


def _entries(
    value: dict[str, object], kind: type, origin: Origin, at: str
) -> dict[str, object]:
    return {
        name: _typed(value.get(name), hint, origin, _below(at, name))
        if name in value or types.NoneType in get_args(hint)
        else _absent(name, value, origin, at)
        for name, hint in _hints(kind).items()
    }


def _absent(name: str, value: dict[str, object], origin: Origin, at: str) -> object:
    raise origin.refuse(f"{name!r}", f"only {sorted(value)}", at)


def _dataclass(value: object, kind: Any, origin: Origin, at: str) -> object:
    entries, hints = _object(value, origin, at), _hints(kind)
    declared = {field.name: field for field in fields(kind) if field.init}
    unknown = sorted(set(entries) - set(declared))
    if unknown:
        got = f"also {unknown}, as another version of torchrl_vla may write"
        raise origin.refuse(f"the fields {list(declared)}", got, at)
    for name, field in declared.items():
        defaults = (field.default, field.default_factory)
        if name not in entries and defaults == (MISSING, MISSING):
            _absent(name, entries, origin, at)
    arguments = {
        name: _typed(item, hints[name], origin, _below(at, name))
        for name, item in entries.items()
    }
    try:
        return kind(**arguments)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise origin.refuse(f"a {kind.__name__} that is possible", error, at) from error


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _below(at: str, key: str) -> str:
    return f"{at}.{key}" if at else key


def _shown(value: object) -> str:
    match value:
        case dict():
            return f"an object with {sorted(map(str, value))}"
        case list():
            return f"a list of {len(value)}"
    return repr(value)
