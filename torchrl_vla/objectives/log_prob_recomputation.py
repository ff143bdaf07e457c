"""Recomputation of a batch's log-probabilities in the learner's arithmetic."""

from __future__ import annotations

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase

from torchrl_vla.schema import (
    ELEMENT_LOG_PROBS_KEY,
    LOG_PROBS_KEY,
    REFERENCE_LOG_PROBS_KEY,
    SchemaError,
    check_positive_int,
)


def recompute_log_probs(
    policy: TensorDictModuleBase,
    decisions: TensorDictBase,
    *,
    minibatch_size: int = 1024,
    element_log_probs_key: NestedKey = ELEMENT_LOG_PROBS_KEY,
    log_probs_key: NestedKey = LOG_PROBS_KEY,
) -> TensorDictBase:
    """Write the log-probabilities of the samples, as the learner computes them.

    Where policies act in another precision, on another machine or in a compiled
    engine, the stored log-probabilities differ from the loss's in the last bits, and in
    bfloat16 by a few percent: PPO then clips before anything has changed. One more
    forward pass in the learner's arithmetic makes every ratio start at 1.

    Warning:
        The samples are then slightly off-policy, and nothing reports it. Compare with
        the stored values first, with
        :func:`torchrl_vla.testing.check_log_prob_consistency`.

    **Reads** the policy's ``in_keys`` and ``sample_key``. **Writes**
    ``element_log_probs`` float ``[N, H, A]`` (sequences of tokens: ``[N, L]``) and
    ``log_probs`` float ``[N]``, without a gradient.

    Args:
        policy: with ``element_log_probs(tensordict)``.
        decisions: the batch ``[N]``; written in place and returned.

    Keyword Args:
        minibatch_size: decisions per forward pass; affects memory only.
        element_log_probs_key: of the per-dimension (per-token) terms.
        log_probs_key: of their sum; None = it is not written.

    Raises:
        SchemaError: the batch has another batch size than ``[N]``.

    Examples:
        >>> from tensordict import TensorDict
        >>> class Even(TensorDictModuleBase):
        ...     in_keys, out_keys = ["state"], ["action_chunk"]
        ...     def element_log_probs(self, td):
        ...         return td["state"].new_full((len(td), 2, 1), -1.0)
        >>> data = TensorDict(state=torch.zeros(3, 1), batch_size=[3])
        >>> recompute_log_probs(Even(), data)["log_probs"]
        tensor([-2., -2., -2.])
    """
    check_positive_int("recompute_log_probs", "minibatch_size", minibatch_size)
    if len(decisions.batch_size) != 1:
        raise SchemaError(
            "recompute_log_probs: expected a batch of decisions [N], got "
            f"{list(decisions.batch_size)}. Flatten it with .reshape(-1)."
        )
    with torch.no_grad():
        parts = [
            policy.element_log_probs(part)
            for part in decisions.split(minibatch_size)  # views, no copies
        ]
    elements = torch.cat(parts)
    decisions.set(element_log_probs_key, elements)
    if log_probs_key is not None:
        decisions.set(log_probs_key, elements.flatten(1).sum(-1))
    return decisions


def add_reference_log_probs(
    reference: TensorDictModuleBase,
    decisions: TensorDictBase,
    *,
    minibatch_size: int = 1024,
) -> TensorDictBase:
    """Write a frozen reference policy's log-probabilities of the same samples.

    :class:`ChunkPPOLoss` with ``reference_kl_coeff`` keeps the policy near the
    reference. Called once per batch of decisions, not per minibatch and epoch.

    **Writes** ``reference_log_probs`` float ``[N, H, A]``.

    Args:
        reference: as ``policy`` of :func:`recompute_log_probs`.
        decisions: the batch ``[N]``; written in place and returned.

    Keyword Args:
        minibatch_size: decisions per forward pass; affects memory only.
    """
    return recompute_log_probs(
        reference,
        decisions,
        minibatch_size=minibatch_size,
        element_log_probs_key=REFERENCE_LOG_PROBS_KEY,
        log_probs_key=None,
    )
