"""Adaptation of a trunk: what is frozen, low-rank adapters, checkpointed layers."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from torchrl_vla._internal.extras import import_extra
from torchrl_vla.policies.vlm.processors import Model
from torchrl_vla.schema import SchemaError, check_positive_int

_BASE = ".base_layer."
#: In the names of the adapters' weights.
LOW_RANK = ".lora_"


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters of the language model's layers; all else of it is frozen.

    There is no dropout: a log-probability would be another number each time.

    Args:
        rank: of each adapter.
        alpha: scale; an adapter counts ``alpha / rank``.
        targets: names of the linear layers that get one.

    Raises:
        ValueError: a number is not positive.

    Source: Hu et al., "LoRA" (arXiv:2106.09685).
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")

    def __post_init__(self) -> None:
        check_positive_int("LoRAConfig", "rank", self.rank)
        if not self.alpha > 0:
            raise ValueError(f"LoRAConfig: expected alpha > 0, got {self.alpha}.")


def inject_adapters(model: Model, config: LoRAConfig) -> None:
    """Put adapters into a model's language model, in place; they change nothing yet.

    Raises:
        MissingExtraError: ``peft`` is not installed.
        SchemaError: no layer has one of the names.
    """
    peft = import_extra("peft", "vlm", "LoRAConfig")
    decoder = model.get_decoder()
    (where,) = (name for name, part in model.named_modules() if part is decoder)
    linear = {
        n.split(".")[-1] for n, m in decoder.named_modules() if type(m) is nn.Linear
    }
    if not linear & set(config.targets):
        raise SchemaError(
            f"LoRAConfig: expected targets among {sorted(linear)}, the linear layers "
            f"of {type(decoder).__name__}, got {list(config.targets)}."
        )
    names = "|".join(map(re.escape, config.targets))
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=rf"{re.escape(where)}\..*\.({names})",
    )
    peft.inject_adapter_in_model(settings, model)


def merge_adapters(model: Model) -> None:
    """Add a model's adapters to the weights under them, in place."""
    for name, layer in [*_adapted(model)]:
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())


def base_weights(model: Model) -> dict[str, Tensor]:
    """Return the weights under the adapters, by the names without them."""
    return {
        name.replace(_BASE, "."): value
        for name, value in model.state_dict().items()
        if LOW_RANK not in name
    }


def adapter_weights(model: Model) -> dict[str, Tensor]:
    """Return the weights of the adapters alone."""
    return {n: value for n, value in model.state_dict().items() if LOW_RANK in n}


def base_identity(model: Model) -> str:
    """Return a hash of the weights under the adapters."""
    digest = hashlib.sha256()
    for name, value in sorted(base_weights(model).items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        data = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(data.numpy().tobytes())
    return digest.hexdigest()


def checkpoint_layers(decoder: nn.Module) -> None:
    """Compute each layer again in the backward pass; its numbers are not kept."""
    for layer in decoder.get_submodule("layers").children():
        layer.forward = functools.partial(  # type: ignore[method-assign]
            _checkpointed, layer.forward
        )


def _checkpointed(forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def _adapted(model: Model) -> Iterator[tuple[str, Any]]:
    tuners = import_extra("peft.tuners.lora", "vlm", "LoRAConfig")
    for name, part in model.named_modules():
        match part:
            case tuners.LoraLayer():
                yield name, part
