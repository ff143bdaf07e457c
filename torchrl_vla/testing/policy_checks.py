"""Contract check of a chunk policy."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from tensordict.nn import InteractionType, TensorDictModuleBase, set_interaction_type
from torch import Tensor

from torchrl_vla.schema import (
    ACTION_CHUNK_KEY,
    ELEMENT_LOG_PROBS_KEY,
    LOG_PROBS_KEY,
)
from torchrl_vla.testing.log_prob_consistency import check_log_prob_consistency


def check_policy(
    policy: TensorDictModuleBase,
    tensordict: TensorDictBase,
    *,
    row_tolerance: float = 1e-4,
    ratio_tolerance: float = 0.0,
    chunk_key: NestedKey = ACTION_CHUNK_KEY,
    log_probs_key: NestedKey = LOG_PROBS_KEY,
    element_log_probs_key: NestedKey = ELEMENT_LOG_PROBS_KEY,
) -> None:
    """Check that a policy writes what it announces, for any batch, and nothing else.

    The contract:

    - It reads its ``in_keys`` and writes its ``out_keys``, no more.
    - The chunk is a finite float ``[*B, H, A]`` with the policy's ``chunk_size`` and
      ``action_dim``.
    - Two calls without sampling give the same outputs. The outputs for a batch index
      depend neither on the leading batch dimensions nor on the indices beside it.
    - A call does not switch the policy between training and evaluation mode.
    - Of a policy with ``get_dist`` that writes log-probabilities, the sample is one
      that the distribution could have drawn. ``log_prob`` and ``element_log_probs``
      return what was written, exactly, in any batch, from the current weights and from
      nothing but the inputs and the sample (:func:`check_log_prob_consistency`).

    Args:
        policy: the policy.
        tensordict: a batch of at least two rows (one batch dimension) that it can read.

    Keyword Args:
        row_tolerance: how much the outputs for a batch index may depend on the indices
            beside it (0 = not in the last bit).
        ratio_tolerance: how far a stochastic policy's ratio may be from 1 when it is
            recomputed in other batches (0 = equal in the last bit).
        chunk_key: where the policy writes its chunk.
        log_probs_key: where a stochastic policy writes its sample's log-probability.
        element_log_probs_key: where it writes the terms of it.

    Raises:
        AssertionError: the contract is broken; the message says how.
        ValueError: the batch has not one batch dimension, or fewer than two rows.

    Examples:
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule
        >>> flat = TensorDictModule(lambda s: s.repeat(1, 2), ["s"], ["action_chunk"])
        >>> flat.chunk_size, flat.action_dim = 2, 1
        >>> check_policy(flat, TensorDict(s=torch.zeros(3, 1), batch_size=[3]))
        Traceback (most recent call last):
        ...
        AssertionError: TensorDictModule: expected a finite float chunk [3, 2, 1] at \
'action_chunk', got [3, 2] torch.float32.
    """
    name = type(policy).__name__
    if len(tensordict.batch_size) != 1 or len(tensordict) < 2:
        raise ValueError(
            "check_policy: expected a batch size [N] with N >= 2, got "
            f"{list(tensordict.batch_size)}."
        )
    training = policy.training
    with set_interaction_type(InteractionType.DETERMINISTIC):
        answer = _ask(policy, tensordict)
        with torch.no_grad():
            after = policy(tensordict.clone())
        _check_keys(name, policy, tensordict, after)
        _check_chunk(name, policy, answer, chunk_key)
        _check_inputs(name, policy, tensordict, after)
        _check_same(name, "whatever else lies in the batch", answer, after)
        _check_same(name, "when asked twice", answer, _ask(policy, tensordict))
        _check_batch_dims(name, policy, tensordict, answer)
        _check_rows(name, policy, tensordict, answer, row_tolerance)
    if policy.training != training:
        raise AssertionError(
            f"{name}: expected training={training} after a call as before, got "
            f"{policy.training}."
        )
    written = {unravel_key(key) for key in policy.out_keys}
    if callable(getattr(policy, "get_dist", None)) and log_probs_key in written:
        keys = (log_probs_key, element_log_probs_key)
        poison = (*keys, chunk_key, "logits")
        for kind in (InteractionType.DETERMINISTIC, InteractionType.RANDOM):
            with set_interaction_type(kind):
                answer = policy(tensordict.clone())
            _check_sample(name, policy, answer)
            answer = answer.detach()
            _check_elements(name, policy, answer, *keys)
            _check_log_prob(name, policy, answer, log_probs_key, poison)
            check_log_prob_consistency(
                policy,
                answer,
                tolerance=ratio_tolerance,
                log_probs_key=log_probs_key,
                element_log_probs_key=element_log_probs_key,
            )
        _check_gradient(name, policy, answer)  # of a sample: at its mode it may be 0


def _ask(policy: TensorDictModuleBase, tensordict: TensorDictBase) -> TensorDictBase:
    """Return what the policy writes when it sees its in_keys alone."""
    with torch.no_grad():
        asked = tensordict.select(*policy.in_keys).clone()
        return policy(asked).select(*policy.out_keys, strict=False)


def _check_keys(
    name: str,
    policy: TensorDictModuleBase,
    tensordict: TensorDictBase,
    after: TensorDictBase,
) -> None:
    before = {unravel_key(key) for key in tensordict.keys(True, True)}
    written = {unravel_key(key) for key in after.keys(True, True)} - before
    announced = {unravel_key(key) for key in policy.out_keys}
    if not written <= announced or not announced <= written | before:
        raise AssertionError(
            f"{name}: expected to write its out_keys {sorted(map(str, announced))}, "
            f"got {sorted(map(str, written))}."
        )


def _check_inputs(
    name: str,
    policy: TensorDictModuleBase,
    tensordict: TensorDictBase,
    after: TensorDictBase,
) -> None:
    announced = {unravel_key(key) for key in policy.out_keys}
    for key, value in tensordict.items(True, True):
        if key in announced:
            continue
        if isinstance(value, Tensor) and not torch.equal(value, after.get(key)):
            raise AssertionError(f"{name}: expected its input {key!r} unchanged.")


def _check_chunk(
    name: str, policy: TensorDictModuleBase, answer: TensorDictBase, key: NestedKey
) -> None:
    chunk = answer.get(key)
    shape = (*answer.batch_size, policy.chunk_size, policy.action_dim)
    good = chunk.shape == shape and chunk.is_floating_point()
    if not (good and chunk.isfinite().all()):
        finite = "" if chunk.isfinite().all() else ", not finite"
        raise AssertionError(
            f"{name}: expected a finite float chunk {list(shape)} at {key!r}, got "
            f"{list(chunk.shape)} {chunk.dtype}{finite}."
        )


def _check_batch_dims(
    name: str,
    policy: TensorDictModuleBase,
    tensordict: TensorDictBase,
    answer: TensorDictBase,
) -> None:
    n = len(tensordict)
    for shape in ((1, n), (n, 1)):
        other = _ask(policy, tensordict.reshape(shape))
        if other.batch_size != shape or any(
            value.shape[:2] != shape for value in other.values(True, True)
        ):
            raise AssertionError(
                f"{name}: expected outputs {list(shape)} + [...] for a batch "
                f"{list(shape)}, got {_shapes(other)}."
            )
        _check_same(name, f"as a batch {list(shape)}", answer, other.reshape(n))


def _check_rows(
    name: str,
    policy: TensorDictModuleBase,
    tensordict: TensorDictBase,
    answer: TensorDictBase,
    tolerance: float,
) -> None:
    alone = _ask(policy, tensordict[0])
    _check_same(name, "for a row alone", answer[0], alone, tolerance)
    rest = _ask(policy, tensordict[1:])
    _check_same(name, "without the row before", answer[1:], rest, tolerance)


def _check_sample(name: str, policy: Any, answer: TensorDictBase) -> None:
    choice = answer.get(policy.sample_key)
    with torch.no_grad():
        drawn = policy.get_dist(answer).sample()
    if choice.shape != drawn.shape or choice.dtype != drawn.dtype:
        raise AssertionError(
            f"{name}: expected a choice {drawn.dtype} {list(drawn.shape)} at "
            f"{policy.sample_key!r}, as get_dist draws it, got {choice.dtype} "
            f"{list(choice.shape)}."
        )
    if choice.requires_grad:
        raise AssertionError(
            f"{name}: expected a choice without a gradient at {policy.sample_key!r}: "
            "a log-probability is of what was chosen."
        )


def _check_elements(
    name: str,
    policy: Any,
    answer: TensorDictBase,
    key: NestedKey,
    element_key: NestedKey,
) -> None:
    total, elements = answer.get(key), answer.get(element_key)
    shape = (*answer.batch_size, policy.chunk_size, policy.action_dim)
    sample = answer.get(policy.sample_key)
    if not sample.is_floating_point() and sample.ndim == answer.ndim + 1:
        shape = tuple(sample.shape)  # a sequence of tokens has a term for each
    if elements.shape != shape or total.shape != answer.batch_size:
        raise AssertionError(
            f"{name}: expected log-probs {list(answer.batch_size)} at {key!r} and "
            f"their terms {list(shape)} at {element_key!r}, got {list(total.shape)} "
            f"and {list(elements.shape)}."
        )
    summed = elements.flatten(1).sum(-1)
    if not torch.allclose(summed, total, rtol=1e-4, atol=1e-4):
        raise AssertionError(
            f"{name}: expected {key!r} to be the sum of {element_key!r} over H and A, "
            f"got a difference of {(summed - total).abs().max():g}."
        )


def _check_log_prob(
    name: str,
    policy: Any,
    answer: TensorDictBase,
    key: NestedKey,
    poison: tuple[NestedKey, ...],
) -> None:
    written = answer.get(key)
    poisoned = answer.clone()
    for poisoned_key in poison:
        if unravel_key(poisoned_key) != policy.sample_key:
            value = answer.get(poisoned_key, written.unsqueeze(-1))
            poisoned.set(poisoned_key, value + 1.0)
    with torch.no_grad():
        again = policy.log_prob(answer)
        unmoved = policy.log_prob(poisoned)
    if not torch.equal(again, written):
        raise AssertionError(
            f"{name}: expected log_prob to return what was written at {key!r}, bit for "
            f"bit, got a difference of {(again - written).abs().max().item():g}."
        )
    if not torch.equal(again, unmoved):
        raise AssertionError(
            f"{name}: expected log_prob from the current weights, got a value that "
            f"depends on one of {list(poison)} in the batch."
        )


def _check_gradient(name: str, policy: Any, answer: TensorDictBase) -> None:
    parameters = [p for p in policy.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(
        policy.log_prob(answer).sum(), parameters, allow_unused=True
    )
    if not any(g is not None and g.any() for g in gradients):
        raise AssertionError(f"{name}: expected log_prob to have a gradient, got none.")


def _check_same(
    name: str,
    when: str,
    expected: TensorDictBase,
    got: TensorDictBase,
    tolerance: float = 0.0,
) -> None:
    for key, value in expected.items(True, True):
        other = got.get(key)
        if torch.equal(value, other):
            continue
        if tolerance and value.is_floating_point():
            if torch.allclose(value, other, rtol=tolerance, atol=tolerance):
                continue
        elif tolerance:  # a token may flip where two logits are that close
            continue
        raise AssertionError(
            f"{name}: expected the same {key!r} {when}, got a difference of up to "
            f"{(value.double() - other.double()).abs().max().item():g}."
        )


def _shapes(tensordict: TensorDictBase) -> dict[str, list[int]]:
    return {str(k): list(v.shape) for k, v in tensordict.items(True, True)}
