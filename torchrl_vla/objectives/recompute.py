"""The log-probabilities of a batch, from the weights and kernels of the learner."""

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
    """Write the log-probabilities of what was chosen, as the learner computes them.

    Where policies act in another precision, on another machine or in a compiled
    engine, what they stored differs from what the loss will compute in the last bits,
    and in bfloat16 by a few percent: PPO then clips and corrects where nothing has
    changed. One more forward pass before the first update, in the learner's own
    arithmetic, makes every ratio begin at 1 again. The surprise: the sampling is then
    slightly off-policy, and nothing says so; compare with what was stored, with
    :func:`torchrl_vla.testing.check_log_prob_consistency`, before you replace it.

    **Reads** the policy's ``in_keys`` and ``sample_key``. **Writes**
    ``element_log_probs`` float ``[N, H, A]`` and ``log_probs`` float ``[N]``, without
    a gradient.

    Args:
        policy: with ``element_log_probs(tensordict)``.
        decisions: the batch ``[N]``; written in place and returned.

    Keyword Args:
        minibatch_size: rows per forward pass; memory only.
        element_log_probs_key: where the terms are written.
        log_probs_key: where their sum is written; None = is not.

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
            for part in decisions.split(minibatch_size)  # views: nothing is copied
        ]
    elements = torch.cat(parts)
    decisions.set(element_log_probs_key, elements)
    if log_probs_key is not None:
        decisions.set(log_probs_key, elements.sum((-2, -1)))
    return decisions


def add_reference_log_probs(
    reference: TensorDictModuleBase,
    decisions: TensorDictBase,
    *,
    minibatch_size: int = 1024,
) -> TensorDictBase:
    """Write what a frozen reference policy would have given the same choices.

    :class:`ChunkPPOLoss` with ``reference_kl_coeff`` keeps the policy near it. Done
    once per batch of decisions rather than once per minibatch and epoch.

    **Writes** ``reference_log_probs`` float ``[N, H, A]``. Arguments as in
    :func:`recompute_log_probs`.
    """
    return recompute_log_probs(
        reference,
        decisions,
        minibatch_size=minibatch_size,
        element_log_probs_key=REFERENCE_LOG_PROBS_KEY,
        log_probs_key=None,
    )
