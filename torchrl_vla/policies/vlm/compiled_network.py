"""Compiled networks that fall back to what they were."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn


def compile_network(network: nn.Module, **options: Any) -> None:
    """Let calls of a network run compiled, in place; names of weights stay.

    Where compiling fails, there is one warning, and the network runs as it was. A copy
    of the network, as a loss makes it, is not compiled.

    Args:
        network: is changed.
        **options: of ``torch.compile``.
    """
    network._compiled_call_impl = _CompiledCall(network, options)


class _CompiledCall:
    """Call a network compiled, or, once that has failed, as it is."""

    def __init__(self, network: nn.Module, options: dict[str, Any]) -> None:
        self._plain = network._call_impl
        self._compiled: Any = torch.compile(self._plain, **options)
        self._name = type(network).__name__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._compiled is None:
            return self._plain(*args, **kwargs)
        try:
            return self._compiled(*args, **kwargs)
        except (torch._dynamo.exc.TorchDynamoException, RuntimeError) as error:
            self._compiled = None
            result = self._plain(*args, **kwargs)  # raises what is no compiler's fault
            warnings.warn(
                f"compile_network: expected to compile {self._name}, got "
                f"{type(error).__name__}: {str(error)[:200]}. It runs without; install "
                "a C++ compiler, or pass backend='aot_eager'.",
                RuntimeWarning,
                stacklevel=3,
            )
            return result
