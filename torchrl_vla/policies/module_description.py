"""Description of a module as JSON: its class by name and its constructor arguments."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

from torchrl_vla.policies.readable_weights import plain_class, uncompiled
from torchrl_vla.schema import InstructionTable, RobotDatasetMetadata, SchemaError

Json: TypeAlias = "bool | int | float | str | list[Json] | Mapping[str, Json] | None"

_FACTORY = "_policy_factory"
_INSTEAD = (
    "Give the class an attribute config = {argument: value, ...} with JSON values, or "
    "keep each argument in an attribute of the same name; or make the policy by a "
    "function and pass --policy module:function (make_from_factory)."
)


class Describer:
    """Describe modules, and keep the instruction table that they share.

    Args:
        caller: opens the error messages.
    """

    def __init__(self, caller: str) -> None:
        self.caller = caller
        self.instructions: InstructionTable | None = None

    def describe(self, module: nn.Module) -> dict[str, Json]:
        """Return ``{"class": ..., "arguments": ...}``, or how a factory made it.

        Raises:
            SchemaError: the class can't be imported by name, or its arguments are
                unknown or can't be written as JSON.
        """
        module = uncompiled(module)
        factory = vars(module).get(_FACTORY)
        if factory is not None:
            return {"$factory": self._factory(factory)}
        cls = plain_class(module)
        name = reference_to(cls, self.caller)
        arguments = {
            key: self.encode(value, f"{cls.__name__}({key}=)")
            for key, value in _arguments_of(module, cls, self.caller).items()
        }
        return {"class": name, "arguments": arguments}

    def encode(self, value: object, where: str) -> Json:
        """Return a value as JSON that :func:`decode` turns back into an equal one."""
        match value:
            case None | bool() | int() | float() | str():
                return value
            case list():
                return [self.encode(item, where) for item in value]
            case tuple():
                return {"$tuple": [self.encode(item, where) for item in value]}
            case dict() if all(type(key) is str and key[:1] != "$" for key in value):
                return {key: self.encode(item, where) for key, item in value.items()}
            case InstructionTable():
                if self.instructions not in (None, value):
                    raise self._refuse(where, "a second instruction table")
                self.instructions = value
                return {"$instructions": True}
            case Tensor():
                dtype = str(value.dtype).removeprefix("torch.")
                return {"$tensor": value.detach().tolist(), "dtype": dtype}
            case nn.Module():
                return {"$module": self.describe(value)}
            case _ if dataclasses.is_dataclass(value):
                return {
                    "$dataclass": reference_to(type(value), self.caller),
                    "arguments": {
                        field.name: self.encode(vars(value)[field.name], where)
                        for field in dataclasses.fields(value)
                    },
                }
        raise self._refuse(where, f"a {type(value).__name__}")

    def _factory(self, factory: PolicyFactory) -> Json:
        metadata = factory.metadata
        return {
            "function": factory.reference,
            "metadata": None if metadata is None else json.loads(metadata.to_json()),
            "instructions": self.encode(factory.instructions, "instructions="),
        }

    def _refuse(self, where: str, got: str) -> SchemaError:
        return SchemaError(
            f"{self.caller}: expected JSON values, tensors, modules or dataclasses for "
            f"{where}, got {got}. {_INSTEAD}"
        )


@dataclass(frozen=True)
class PolicyFactory:
    """A user's function that makes a policy, and what it is called with.

    Args:
        reference: ``"module:function"``, importable.
        metadata: handed to the function where it declares ``metadata``.
        instructions: handed to it where it declares ``instructions``.
    """

    reference: str
    metadata: RobotDatasetMetadata | None = None
    instructions: InstructionTable | None = None

    def __call__(self) -> nn.Module:
        """Call the function.

        Raises:
            SchemaError: there is no such function, or it needs other arguments.
        """
        function = resolve(self.reference, "make_from_factory")
        if not inspect.isfunction(function):
            raise SchemaError(
                f"make_from_factory: expected a Python function at "
                f"{self.reference!r}, got {type(function).__name__}."
            )
        parameters = inspect.signature(function).parameters.values()
        given = {"metadata": self.metadata, "instructions": self.instructions}
        unknown = [
            p.name
            for p in parameters
            if p.name not in given and p.default is p.empty and p.kind not in (2, 4)
        ]
        if unknown:
            raise SchemaError(
                f"make_from_factory: expected a function of metadata and instructions "
                f"at {self.reference!r}, got one that also needs {unknown}. Give the "
                "others a default."
            )
        named = [p.name for p in parameters if p.name in given]
        return function(**{name: given[name] for name in named})

    def record(self, module: nn.Module) -> None:
        """Note at a module that this factory made it."""
        object.__setattr__(module, _FACTORY, self)


def build(description: Mapping, table: InstructionTable | None) -> nn.Module:
    """Make a module from its description.

    Args:
        description: of :meth:`Describer.describe`.
        table: the instruction table that was described with it.

    Raises:
        SchemaError: the class or function is not there, or is none of a module.
    """
    if "$factory" in description:
        stored = description["$factory"]
        metadata = stored["metadata"]
        if metadata is not None:
            metadata = RobotDatasetMetadata.from_json(json.dumps(metadata))
        instructions = decode(stored["instructions"], table)
        factory = PolicyFactory(
            stored["function"],
            metadata,
            cast("InstructionTable | None", instructions),
        )
        module = uncompiled(factory())
        factory.record(module)
        return module
    cls = _class_of(description["class"], nn.Module)
    return cls(**{k: decode(v, table) for k, v in description["arguments"].items()})


def decode(value: Json, table: InstructionTable | None) -> object:
    """Undo :meth:`Describer.encode`."""
    match value:
        case list():
            return [decode(item, table) for item in value]
        case {"$tuple": list(items)}:
            return tuple(decode(item, table) for item in items)
        case {"$instructions": _}:
            return table
        case {"$tensor": numbers, "dtype": str(dtype)}:
            return torch.tensor(numbers, dtype=getattr(torch, dtype))
        case {"$module": dict(description)}:
            return build(description, table)
        case {"$dataclass": str(reference), "arguments": dict(arguments)}:
            cls = _class_of(reference, object)
            return cls(**{k: decode(item, table) for k, item in arguments.items()})
        case dict():
            return {key: decode(item, table) for key, item in value.items()}
    return value


def reference_to(cls: type, caller: str) -> str:
    """Return ``"module:Class"``, by which a class can be imported.

    Raises:
        SchemaError: it can't be.
    """
    reference = f"{cls.__module__}:{cls.__qualname__}"
    if cls.__module__ == "__main__":
        why = "is defined in __main__, the script that runs"
    elif "<locals>" in cls.__qualname__:
        why = "is defined inside a function"
    else:
        try:
            if resolve(reference, caller) is cls:
                return reference
            why = "is not what its name leads to"
        except SchemaError:
            why = "can't be imported by its name"
    raise SchemaError(
        f"{caller}: expected a class that can be imported to read the policy back, got "
        f"{reference!r}, which {why}. Define it at the top level of a module of yours."
    )


def resolve(reference: str, caller: str) -> object:
    """Import what ``"module:name"`` refers to.

    Raises:
        SchemaError: there is no such module or name; the standard library is refused.
    """
    module, _, path = reference.partition(":")
    if not path or module.split(".")[0] in sys.stdlib_module_names:
        raise SchemaError(
            f"{caller}: expected 'module:name' of an installed package or a module of "
            f"yours, got {reference!r}."
        )
    try:
        found: object = importlib.import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as error:
        raise SchemaError(
            f"{caller}: expected to import {reference!r}, got {error}. Install its "
            "package, or add its folder to PYTHONPATH."
        ) from error
    return found


def _is_allowed(cls: type, base: type) -> bool:
    return base is nn.Module or dataclasses.is_dataclass(cls)


def _class_of(reference: str, base: type) -> type:
    cls = resolve(reference, "load_policy")
    if inspect.isclass(cls) and issubclass(cls, base) and _is_allowed(cls, base):
        return cls
    kind = "an nn.Module" if base is nn.Module else "a dataclass"
    raise SchemaError(f"load_policy: expected {kind} at {reference!r}, got {cls!r}.")


def _arguments_of(module: nn.Module, cls: type, caller: str) -> Mapping[str, object]:
    """Return the constructor's arguments: ``config``, or attributes of their names."""
    config = getattr(module, "config", None)
    match config:
        case dict():
            return config
    init = cls.__init__  # type: ignore[misc]  # of exactly this class
    parameters = list(inspect.signature(init).parameters.values())[1:]
    if init is nn.Module.__init__:
        parameters = []
    missing = [
        p.name
        for p in parameters
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) or not hasattr(module, p.name)
    ]
    if missing:
        raise SchemaError(
            f"{caller}: expected the constructor's arguments of {cls.__name__} to "
            f"build it again, got none for {missing}. {_INSTEAD}"
        )
    return {p.name: getattr(module, p.name) for p in parameters}
