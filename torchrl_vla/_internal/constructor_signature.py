"""Signature of a class whose metaclass hides its constructor."""

from __future__ import annotations

import inspect


class ConstructorSignature:
    """Show the parameters of ``__init__`` to ``inspect.signature`` and to editors.

    Metaclasses of TorchRL's environments, losses, samplers and buffers put
    ``(*args, **kwargs)`` before them. Subclasses show their own.

    Examples:
        >>> class Hiding(type):
        ...     def __call__(cls, *args, **kwargs):
        ...         return super().__call__(*args, **kwargs)
        >>> class Arm(metaclass=Hiding):
        ...     __signature__ = ConstructorSignature()
        ...
        ...     def __init__(self, joints: int = 6) -> None: ...
        >>> list(inspect.signature(Arm).parameters)
        ['joints']
    """

    def __get__(self, instance: object | None, owner: type) -> inspect.Signature:
        if instance is not None:
            raise AttributeError("__signature__ is that of the class, not of a call")
        shown = inspect.signature(owner.__init__)  # type: ignore[misc]
        return inspect.Signature(list(shown.parameters.values())[1:])  # without self
