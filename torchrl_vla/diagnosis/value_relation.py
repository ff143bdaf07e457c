"""Relation between the numbers of two paths that should be equal."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi

import torch
from torch import Tensor

from torchrl_vla.diagnosis.finding import Finding

#: Differences below this share of a dimension's spread are rounding.
TOLERANCE = 1e-3

_UNITS = {
    180 / pi: "degrees against radians",
    pi / 180: "radians against degrees",
    1000.0: "millimetres against metres",
    0.001: "metres against millimetres",
    100.0: "centimetres against metres",
    0.01: "metres against centimetres",
}


def unit_of(factor: float) -> str | None:
    """Return the two units that a factor converts between; None = no known ones.

    Examples:
        >>> unit_of(57.3)
        'degrees against radians'
    """
    for known, text in _UNITS.items():
        if abs(factor / known - 1) < 2e-3:
            return text
    return None


def differing(expected: Tensor, got: Tensor) -> Tensor:
    """Return the dimensions in which two ``[n, D]`` differ by more than rounding."""
    gap = (got - expected).abs().amax(0)
    spread = expected.amax(0) - expected.amin(0)
    rounding = 16 * torch.finfo(torch.float32).eps * expected.abs().amax(0)
    limit = TOLERANCE * spread.clamp_min(1e-6) + rounding
    return (~(gap <= limit)).nonzero().flatten()  # NaN differs, too


def explain(
    expected: Tensor,
    got: Tensor,
    *,
    what: str,
    names: Sequence[str] | None = None,
    origin: Tensor | None = None,
) -> Finding | None:
    """Name the difference between two sequences of vectors, or None.

    Args:
        expected: float ``[n, L, D]``, ``n`` sequences of the training path.
        got: the same of the acting path.

    Keyword Args:
        what: names the numbers, such as ``"actions"``.
        names: of the dimensions.
        origin: ``[n, D]``, the state that actions may be relative to.
    """
    expected, got = expected.double().cpu(), got.double().cpu()
    both = expected.isnan() & got.isnan()  # the data's own: no path made it
    expected, got = expected.masked_fill(both, 0.0), got.masked_fill(both, 0.0)
    flat, flat_got = expected.flatten(0, 1), got.flatten(0, 1)
    dims = differing(flat, flat_got)
    if not len(dims):
        return None
    some = dims.tolist()
    where = ", ".join(str(names[i]) if names else str(i) for i in some)
    worst = (flat_got - flat)[:, dims].abs().amax().item()
    head = f"{what} differ by up to {worst:.4g} in dimensions {where}"
    reference = _reference(expected[..., dims], got[..., dims], origin, dims)
    if reference is not None:
        return Finding("action representation", f"{head}: acting takes {reference}")
    fits = [_line(flat[:, i], flat_got[:, i]) for i in some]
    if all(fit is not None for fit in fits):
        lines = [fit for fit in fits if fit is not None]
        units = {unit_of(slope) for slope, _ in lines}
        numbers = "; ".join(
            f"{names[i] if names else i}: {slope:.4g} x {offset:+.4g}"
            for i, (slope, offset) in zip(some, lines, strict=True)
        )
        head = f"{head}: acting = {numbers} of the training's x"
        unit = units.pop() if len(units) == 1 else None
        if unit is not None:
            return Finding("units", f"{head} ({unit})")
        return Finding("normalization", head)
    stage = "action representation" if what.startswith("action") else "normalization"
    return Finding(stage, f"{head}, in no simple relation")


def _line(x: Tensor, y: Tensor) -> tuple[float, float] | None:
    """Return slope and offset of ``y`` over ``x`` where it is exact, else None.

    Values beyond a bound may be clipped to it.
    """
    if not bool(y.isfinite().all()):
        return None
    low, high = y.amin(), y.amax()
    every = torch.ones_like(y, dtype=torch.bool)
    for free in (every, y < high, y > low, (y < high) & (y > low)):
        if not bool(free.any()):
            continue
        rise = y[free] - y[free].mean()
        spread = x[free] - x[free].mean()
        power = float(spread.square().sum())
        slope = 1.0 if power < 1e-16 else float((spread * rise).sum()) / power
        offset = float(y[free].mean() - slope * x[free].mean())
        miss = ((slope * x + offset).clamp(low, high) - y).abs().max()
        if miss <= 0.01 * (high - low + 1e-6):
            return slope, offset
    return None


def _reference(
    expected: Tensor, got: Tensor, origin: Tensor | None, dims: Tensor
) -> str | None:
    """Return how one sequence follows from the other by another action reference."""
    pairs = []
    if expected.shape[1] > 1:
        steps, sums = expected.diff(dim=1), expected[:, 1:]
        pairs.append(("differences of consecutive actions (delta)", steps, got[:, 1:]))
        pairs.append(("sums of the actions (absolute)", sums, got.diff(dim=1)))
    if origin is not None and int(dims.max()) < origin.shape[-1]:
        start = origin.double().cpu()[:, None, dims]
        pairs.append(("actions minus the state (relative)", expected - start, got))
        pairs.append(("actions plus the state (absolute)", expected + start, got))
    for text, theory, found in pairs:
        spread = theory.flatten(0, 1)
        if bool((spread.amax(0) - spread.amin(0) < 1e-9).all()):
            continue  # nothing moves, so it explains nothing
        if not len(differing(spread, found.flatten(0, 1))):
            return text
    return None
