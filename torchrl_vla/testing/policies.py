"""The contract of a chunk policy."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from tensordict.nn import InteractionType, TensorDictModuleBase, set_interaction_type
from torch import Tensor

from torchrl_vla.schema import ACTION_CHUNK_KEY, ACTION_TOKENS_KEY, LOG_PROBS_KEY


def check_policy(
    policy: TensorDictModuleBase,
    tensordict: TensorDictBase,
    *,
    row_tolerance: float = 1e-4,
    chunk_key: NestedKey = ACTION_CHUNK_KEY,
    tokens_key: NestedKey = ACTION_TOKENS_KEY,
    log_probs_key: NestedKey = LOG_PROBS_KEY,
) -> None:
    """Check that a policy writes what it announces, for any batch, and nothing else.

    The contract: it reads its ``in_keys`` and writes its ``out_keys``, no more; the
    chunk is a finite float ``[*B, H, A]`` with the policy's ``chunk_size`` and
    ``action_dim``; asked twice without sampling it answers the same; a row's answer
    depends neither on the leading batch dimensions nor on the rows beside it; asking
    does not switch the policy between training and evaluation. With a token head
    besides: ``log_prob`` returns what was written, exactly, from the current weights
    and from nothing that lies in the batch.

    Args:
        policy: the policy.
        tensordict: a batch of at least two rows (one batch dimension) that it can read.

    Keyword Args:
        row_tolerance: how much a row may depend on the rows beside it (0 = not in the
            last bit).
        chunk_key: where the policy writes its chunk.
        tokens_key: where a token policy writes its tokens.
        log_probs_key: where a token policy writes their log-probability.

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
    if tokens_key in map(unravel_key, policy.out_keys):
        for kind in (InteractionType.DETERMINISTIC, InteractionType.RANDOM):
            with set_interaction_type(kind), torch.no_grad():
                answer = policy(tensordict.clone())
            _check_tokens(name, policy, answer, tokens_key)
            _check_log_prob(name, policy, answer, log_probs_key)


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


def _check_tokens(
    name: str, policy: TensorDictModuleBase, answer: TensorDictBase, key: NestedKey
) -> None:
    tokens = answer.get(key)
    shape = (*answer.batch_size, policy.chunk_size, policy.action_dim)
    if tokens.shape != shape or tokens.dtype != torch.int64:
        raise AssertionError(
            f"{name}: expected int64 tokens {list(shape)} at {key!r}, got "
            f"{list(tokens.shape)} {tokens.dtype}."
        )


def _check_log_prob(name: str, policy: Any, answer: TensorDictBase, key: NestedKey):
    written = answer.get(key)
    with torch.no_grad():
        again = policy.log_prob(answer)
        poisoned = answer.clone().set(key, written + 1.0)
        poisoned.set("logits", torch.zeros(*answer.batch_size, 1))
        unmoved = policy.log_prob(poisoned)
    if not torch.equal(again, written):
        raise AssertionError(
            f"{name}: expected log_prob to return what was written at {key!r}, bit for "
            f"bit, got a difference of {(again - written).abs().max().item():g}."
        )
    if not torch.equal(again, unmoved):
        raise AssertionError(
            f"{name}: expected log_prob from the current weights, got a value that "
            f"depends on {key!r} or 'logits' in the batch."
        )
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
