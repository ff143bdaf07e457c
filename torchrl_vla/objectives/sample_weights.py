"""Sample weights of a batch, and weighted means over valid elements."""

from __future__ import annotations

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from torchrl_vla.schema import SAMPLE_WEIGHT_KEY, MissingKeyError, SchemaError


def read_sample_weights(
    tensordict: TensorDictBase, key: NestedKey | None, target: Tensor, caller: str
) -> Tensor | None:
    """Return the weights float ``[*B]`` of the samples; refuse impossible ones.

    Inside ``torch.compile`` the values are not checked.

    Args:
        tensordict: the batch.
        key: where the weights are; None = all samples count equally.
        target: the expert's chunk ``[*B, H, A]``.
        caller: opens the error message.

    Raises:
        MissingKeyError: nothing is at ``key``.
        SchemaError: the weights are not float, have another shape, are negative or not
            finite, or are 0 everywhere; or they are in the batch and ``key`` is None.
    """
    if key is None:
        if tensordict.get(SAMPLE_WEIGHT_KEY, None) is not None:
            raise SchemaError(
                f"{caller}: expected a key of weights, got none and a batch with "
                f"{SAMPLE_WEIGHT_KEY!r}. Call set_keys(weight={SAMPLE_WEIGHT_KEY!r}); "
                "or exclude it from the batch to count all samples equally."
            )
        return None
    weight = tensordict.get(key, None)
    if weight is None:
        raise MissingKeyError(
            f"{caller}: expected weights float [*B] at {key!r}, got only "
            f"{sorted(map(str, tensordict.keys(True, True)))}. AdvantageWeights writes "
            "them; set_keys(weight=None) declares that all samples count equally."
        )
    shape = target.shape[:-2]
    if not weight.is_floating_point() or weight.shape != shape:
        raise SchemaError(
            f"{caller}: expected float {list(shape)} at {key!r}, one weight per sample,"
            f" got {weight.dtype} {list(weight.shape)}."
        )
    if torch.compiler.is_compiling():
        return weight
    bad = ~(weight.isfinite() & (weight >= 0))
    if bad.any():
        raise SchemaError(
            f"{caller}: expected finite weights >= 0 at {key!r}, got "
            f"{weight[bad][:5].tolist()} in {int(bad.sum())} of {weight.numel()} "
            "samples."
        )
    if not (weight > 0).any():
        raise SchemaError(
            f"{caller}: expected at least one weight above 0 at {key!r}, got 0 in all "
            f"{weight.numel()} samples. Nothing is left to learn from."
        )
    return weight


def weigh(
    elements: Tensor, valid: Tensor, weight: Tensor, caller: str
) -> tuple[Tensor, Tensor]:
    """Return the weighted elements and their weights, both 0 where nothing counts.

    The quotient of their sums is the weighted mean
    ``sum_i w_i sum_valid(loss_i) / sum_i w_i n_valid_i``. Weights of 1 give the bits of
    the plain mean.

    Args:
        elements: the loss of each element, ``[*B, H, A]``.
        valid: bool ``[*B, H, A]``.
        weight: of the samples, float ``[*B]``.
        caller: opens the error message.

    Raises:
        SchemaError: every sample of weight above 0 is all padding.
    """
    expanded = torch.where(valid, _expand(weight, valid), 0.0)
    counts = expanded > 0
    if not torch.compiler.is_compiling() and not counts.any():
        raise SchemaError(
            f"{caller}: expected a valid position in a sample of weight above 0, got "
            "padding in all of them. Nothing is left to learn from."
        )
    expanded = expanded.to(elements.dtype)
    return torch.where(counts, expanded * elements, 0.0), expanded


def weighted_mean(
    elements: Tensor, valid: Tensor, weight: Tensor | None, caller: str
) -> Tensor:
    """Return the mean over valid elements, weighted per sample.

    Args:
        elements: the loss of each element, ``[*B, H, A]``.
        valid: bool ``[*B, H, A]``.
        weight: of the samples, float ``[*B]``; None = all count equally.
        caller: opens the error message.

    Examples:
        >>> import torch
        >>> loss = torch.tensor([[[1.0], [3.0]], [[8.0], [torch.nan]]])
        >>> valid = torch.tensor([[[True], [True]], [[True], [False]]])
        >>> weighted_mean(loss, valid, torch.tensor([1.0, 2.0]), "Loss")  # 20 / 4
        tensor(5.)
    """
    if weight is None:
        return torch.where(valid, elements, 0.0).sum() / valid.sum().clamp_min(1)
    weighted, expanded = weigh(elements, valid, weight, caller)
    total = expanded.sum()
    return weighted.sum() / torch.where(total > 0, total, 1.0)


def counts_in_loss(valid: Tensor, weight: Tensor | None) -> Tensor:
    """Return where a target has influence, bool ``[*B, H, A]``.

    A sample of weight 0 counts as padding; its values may be NaN.
    """
    return valid if weight is None else valid & (_expand(weight, valid) > 0)


def _expand(weight: Tensor, like: Tensor) -> Tensor:
    return weight.reshape(*weight.shape, *(1,) * (like.ndim - weight.ndim))
