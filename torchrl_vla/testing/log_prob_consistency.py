"""Log-probability consistency check: unchanged weights have ratio one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from torchrl_vla.schema import (
    ELEMENT_LOG_PROBS_KEY,
    IS_DECISION_KEY,
    LOG_PROBS_KEY,
    MissingKeyError,
)

_PROBES = 4  # sub-batches of one size that are asked about
_ROUNDING = 1e-2  # log-probs that differ by less may differ by rounding
_HALF_ROUNDING = 1.0  # the same in half precision


@dataclass(frozen=True)
class LogProbConsistencyReport:
    """How far recomputed log-probabilities are from those that were written.

    With the weights that acted, everything here is 0 but the number of decisions.

    Args:
        n_decisions: rows that were compared.
        n_different: rows that differ in any bit, in any of the batches tried.
        ratio_error: the largest distance of a chunk's ratio from 1.
        element_error: the largest difference of an element's log-probability.
        kl: mean of ``log old - log new``, PPO's estimate of the divergence.
        clip_fraction: share of chunks whose ratio PPO would clip.
    """

    n_decisions: int
    n_different: int
    ratio_error: float
    element_error: float
    kl: float
    clip_fraction: float


def check_log_prob_consistency(
    policy: Any,
    decisions: TensorDictBase,
    *,
    tolerance: float = 0.0,
    batch_sizes: tuple[int | None, ...] = (None, 1, 3),
    clip_epsilon: float = 0.2,
    log_probs_key: NestedKey = LOG_PROBS_KEY,
    element_log_probs_key: NestedKey = ELEMENT_LOG_PROBS_KEY,
) -> LogProbConsistencyReport:
    """Check that a policy's log-probabilities of its own samples are what it wrote.

    The audit to run on a collected batch before the first update: whatever acted in
    between (executor, collector, transforms, buffer), a policy that has not learned
    must give each sample the probability that it was drawn with. Otherwise PPO corrects
    for a change that never happened, and clips. Decisions are recomputed in their order
    and shuffled, all together and in small batches, as executors and learners do.

    Args:
        policy: whose weights acted; ``element_log_probs(tensordict)`` and
            ``log_prob(tensordict)`` recompute.
        decisions: ``[N]`` with the policy's inputs, its samples and what it wrote.

    Keyword Args:
        tolerance: how far a ratio may be from 1; 0 = equal bit for bit.
        batch_sizes: sizes of the batches that are recomputed; None = all decisions.
        clip_epsilon: half width of the band in which PPO does not clip.
        log_probs_key: where the sample's log-probability was written.
        element_log_probs_key: where its terms were written.

    Returns:
        What was found, within the tolerance.

    Raises:
        AssertionError: a ratio is not 1; the message says the probable cause.
        MissingKeyError: the decisions hold no log-probabilities.
        ValueError: they have not one batch dimension, or no rows.

    Examples:
        >>> from tensordict import TensorDict
        >>> class Even:  # chooses one of four tokens, each as often
        ...     def element_log_probs(self, td):
        ...         return torch.full((*td.batch_size, 2, 1), 0.25).log()
        ...
        ...     def log_prob(self, td):
        ...         return self.element_log_probs(td).sum((-2, -1))
        >>> td = TensorDict(batch_size=[5])
        >>> td["element_log_probs"] = torch.full((5, 2, 1), 0.25).log()
        >>> td["log_probs"] = td["element_log_probs"].sum((-2, -1))
        >>> check_log_prob_consistency(Even(), td).ratio_error
        0.0
    """
    if len(decisions.batch_size) != 1 or not len(decisions):
        raise ValueError(
            "check_log_prob_consistency: expected decisions [N] with N >= 1, got batch "
            f"size {list(decisions.batch_size)}. Call select_decisions, or reshape(-1)."
        )
    old = _read(decisions, log_probs_key)
    old_elements = _read(decisions, element_log_probs_key)
    shift = torch.zeros_like(old)  # of log-probs: the largest over all batches
    element_shift = torch.zeros_like(old_elements)
    different = torch.zeros(len(old), dtype=torch.bool, device=old.device)
    with torch.no_grad():
        for rows in _batches(len(decisions), batch_sizes, old.device):
            batch = decisions[rows]
            new, elements = policy.log_prob(batch), policy.element_log_probs(batch)
            _keep_largest(shift, rows, new - old[rows])
            _keep_largest(element_shift, rows, elements - old_elements[rows])
            changed = (elements != old_elements[rows]).flatten(1).any(-1)
            different[rows] |= changed | (new != old[rows])
        ratio = shift.exp()
        report = LogProbConsistencyReport(
            n_decisions=len(old),
            n_different=int(different.sum()),
            ratio_error=float((ratio - 1).abs().max()),
            element_error=float(element_shift.abs().max()),
            kl=float(shift.mean().neg()) + 0.0,  # not -0
            clip_fraction=float(((ratio - 1).abs() > clip_epsilon).float().mean()),
        )
        if tolerance:
            holds = report.ratio_error <= tolerance
            holds = holds and float(element_shift.exp().sub(1).abs().max()) <= tolerance
        else:
            holds = not report.n_different
        if not holds:
            largest = torch.maximum(shift.abs(), element_shift.abs().flatten(1).amax(1))
            cause = _cause(policy, decisions, largest, different)
            raise AssertionError(
                f"{type(policy).__name__}: expected unchanged weights to give ratio 1, "
                f"got {report.n_different} of {report.n_decisions} decisions that "
                f"differ: ratio off by up to {report.ratio_error:g}, KL "
                f"{report.kl:g}, clip fraction {report.clip_fraction:g}. {cause}"
            )
    return report


def _read(decisions: TensorDictBase, key: NestedKey) -> Tensor:
    value = decisions.get(key, None)
    if value is None:
        raise MissingKeyError(
            "check_log_prob_consistency: expected the policy's log-probabilities at "
            f"{key!r}, got only {sorted(map(str, decisions.keys(True, True)))}. "
            "Collect with a stochastic policy, and let no transform drop what it wrote."
        )
    return value.detach()


def _batches(
    n: int, sizes: tuple[int | None, ...], device: torch.device
) -> Iterator[Tensor]:
    """Rows in their order and shuffled, some batches of each size."""
    generator = torch.Generator().manual_seed(0)
    for size in sizes:
        for order in (torch.arange(n), torch.randperm(n, generator=generator)):
            parts = order.split(min(size or n, n))
            step = max(len(parts) // _PROBES, 1)
            for rows in [*parts[::step][:_PROBES], parts[-1]]:
                yield rows.to(device)


def _keep_largest(largest: Tensor, rows: Tensor, found: Tensor) -> None:
    found = found.to(largest.dtype)
    larger = ~(found.abs() <= largest[rows].abs())  # NaN is larger, too
    largest[rows] = torch.where(larger, found, largest[rows])


def _cause(
    policy: Any, decisions: TensorDictBase, largest: Tensor, different: Tensor
) -> str:
    """Name the usual cause of what was found."""
    asked = [policy.element_log_probs(decisions) for _ in range(2)]
    if not torch.equal(*asked):
        return (
            "Asked twice, the policy says two things: is there dropout or batch "
            "normalization in training mode, or noise of its own? Call eval()."
        )
    marks = decisions.get(IS_DECISION_KEY, None)
    if marks is not None and not marks.all():
        return (
            f"{int((~marks).sum())} rows are no decisions: their observation is not "
            "the one that the chunk was chosen from. Call select_decisions(rollout)."
        )
    half = any(p.dtype.itemsize < 4 for p in getattr(policy, "parameters", list)())
    if bool((largest < (_HALF_ROUNDING if half else _ROUNDING)).all()):
        return (
            "So little is rounding, or a small step of the weights: matrix products "
            "round a row as the batch that it lies in has them do, more so in half "
            "precision. Recompute the log-probabilities in the learner's batches "
            "before the first update, or allow a tolerance."
        )
    if not different.all():
        return (
            "The others are exact, so weights and settings are the same: are these "
            "rows' observations or choices of another step than their log-probs "
            "(an executor that pairs a fresh chunk with old outputs, a reset between)?"
        )
    return (
        "All differ, so look for what changed between acting and now: the weights (a "
        "collector that was not updated, or one update too early), temperature or "
        "noise, the choice itself (clipped or denormalized in place), or inputs that "
        "a transform rewrote (normalized twice, a resized image)."
    )
