"""Weights of a module under the names that its plain class has."""

from __future__ import annotations

from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.weight_norm import WeightNorm

_COMPILED = "_orig_mod"

Module = TypeVar("Module", bound=nn.Module)


def uncompiled(module: Module) -> Module:
    """Return the module inside ``torch.compile(module)``; others as they are."""
    return getattr(module, _COMPILED, module)


def plain_class(module: nn.Module) -> type[nn.Module]:
    """Return the class that a module was made from, whatever was done to it since."""
    module = uncompiled(module)
    if parametrize.is_parametrized(module):
        return type(module).__bases__[0]
    return type(module)


def raw_weights(module: nn.Module) -> dict[str, Tensor]:
    """Return the state dict without the prefixes of compiled parts."""
    return {
        _plain_name(name): value
        for name, value in uncompiled(module).state_dict().items()
    }


def readable_weights(module: nn.Module) -> dict[str, Tensor]:
    """Return the weights that the forward pass computes with, by plain names.

    Parametrized weights (``torch.nn.utils.parametrize``, ``weight_norm``, LoRA by
    parametrization) are replaced by what they amount to in evaluation mode.

    Examples:
        >>> layer = nn.utils.parametrizations.weight_norm(nn.Linear(2, 1))
        >>> sorted(readable_weights(layer))
        ['bias', 'weight']
    """
    weights = raw_weights(module)
    for name, part in uncompiled(module).named_modules():
        part = uncompiled(part)
        prefix = _plain_name(f"{name}." if name else "")
        for tensor, value in _effective(part).items():
            for old in (f"parametrizations.{tensor}.", f"{tensor}_g", f"{tensor}_v"):
                stale = [key for key in weights if key.startswith(prefix + old)]
                for key in stale:
                    del weights[key]
            weights[prefix + tensor] = value
    return weights


def load_weights(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load weights by plain names into a module that may have compiled parts.

    Floating-point weights take the stored dtype.

    Raises:
        RuntimeError: names or sizes differ.
    """
    own = module.state_dict(keep_vars=True)
    for name, value in own.items():
        stored = weights.get(_plain_name(name))
        if stored is not None and stored.dtype != value.dtype:
            value.data = value.data.to(stored.dtype)
    names = {_plain_name(name): name for name in own}
    module.load_state_dict({names.get(n, n): value for n, value in weights.items()})


def _plain_name(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != _COMPILED)


def _effective(part: nn.Module) -> dict[str, Tensor]:
    """Return the parametrized tensors of a module itself, as they are computed."""
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        for hook in part._forward_pre_hooks.values():
            match hook:
                case WeightNorm():
                    found[hook.name] = hook.compute_weight(part).detach()
        if parametrize.is_parametrized(part):
            for name, steps in cast(nn.ModuleDict, part.parametrizations).items():
                training = steps.training
                steps.eval()  # spectral_norm iterates while it trains
                found[name] = steps().detach()
                steps.train(training)
    return found
