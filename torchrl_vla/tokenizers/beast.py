"""BEAST action tokenizer: control points of B-splines, fixed length."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from torchrl_vla.schema import check_positive_int
from torchrl_vla.tokenizers.chunk_tokenizer import ChunkActionTokenizer, read_chunks
from torchrl_vla.tokenizers.token_grammar import PositionGrammar

_Numbers = list[float] | Tensor


class BEASTActionTokenizer(ChunkActionTokenizer):
    """Approximate each dimension of a chunk by a B-spline; a token is a control point.

    The spline is clamped, of uniform knots, and fits the chunk in least squares. Its
    ``num_basis`` control points per dimension are rounded to ``num_bins`` levels
    between ``low`` and ``high``. All sequences have ``num_basis * A`` tokens, in the
    order of time and at each time of the dimensions, so none can be malformed; decoded
    chunks are smooth.

    Keyword Args:
        chunk_size: ``H``.
        num_basis: control points per dimension, in ``[degree + 1, H]``.
        low: smallest control point per dimension ``[A]``, in the actions' unit.
        high: largest, likewise. :meth:`fit` finds both in a dataset.
        degree: of the polynomials; 0 is piecewise constant.
        num_bins: levels, 2 or more.

    Raises:
        ValueError: a size is out of its range, or bounds are not finite low < high.
        TokenError: an action is not finite, or a token is not in ``[0, num_bins)``
            (names the position).

    Examples:
        >>> tokenizer = BEASTActionTokenizer(
        ...     chunk_size=8, num_basis=4, low=[-2.0], high=[2.0], num_bins=401
        ... )
        >>> line = torch.linspace(-1, 1, 8)[:, None]
        >>> tokenizer.encode(line)
        tensor([100, 167, 233, 300])
        >>> tokenizer.decode(tokenizer.encode(line))[:2, 0]
        tensor([-1.0000, -0.7134])

    Source: H. Zhou et al., arXiv:2506.06072 (BEAST).
    """

    def __init__(
        self,
        *,
        chunk_size: int,
        num_basis: int,
        low: _Numbers,
        high: _Numbers,
        degree: int = 3,
        num_bins: int = 256,
    ) -> None:
        bounds = [torch.as_tensor(each, dtype=torch.float64) for each in (low, high)]
        shapes = [list(bound.shape) for bound in bounds]
        if shapes[0] != shapes[1] or len(shapes[0]) != 1:
            raise ValueError(
                "BEASTActionTokenizer: expected low and high of one shape [A], got "
                f"{shapes[0]} and {shapes[1]}."
            )
        super().__init__(chunk_size, *shapes[0])
        if (
            not (bounds[0].isfinite() & bounds[1].isfinite()).all()
            or not (bounds[0] < bounds[1]).all()
        ):
            raise ValueError(
                "BEASTActionTokenizer: expected finite low < high, got "
                f"low={bounds[0].tolist()}, high={bounds[1].tolist()}."
            )
        check_sizes(chunk_size, num_basis, degree)
        if num_bins < 2:
            raise ValueError(
                f"BEASTActionTokenizer: expected num_bins >= 2, got {num_bins}."
            )
        self.num_basis = num_basis
        self.degree = degree
        self.num_bins = num_bins
        # No buffers: a policy's bfloat16() must not round them.
        self.low, self.high = bounds
        self.basis = spline_basis(chunk_size, num_basis, degree)
        self.fitter = torch.linalg.pinv(self.basis)

    @classmethod
    def fit(
        cls,
        chunks: Tensor | Iterable[Tensor],
        *,
        num_basis: int,
        degree: int = 3,
        num_bins: int = 256,
    ) -> BEASTActionTokenizer:
        """Take the bounds from the control points of a dataset's chunks.

        A dimension that never moves gets bounds that are 1 apart.

        Args:
            chunks: normalized, ``[N, H, A]``, or an iterable of ``[H, A]`` or
                ``[n, H, A]``.

        Keyword Args:
            num_basis: as of the class.
            degree: as of the class.
            num_bins: as of the class.

        Raises:
            TokenError: the chunks differ in shape or are not finite.
        """
        data = read_chunks("BEASTActionTokenizer.fit", chunks)
        size = data.shape[1]
        check_sizes(size, num_basis, degree)
        points = torch.linalg.pinv(spline_basis(size, num_basis, degree)) @ data
        low, high = torch.aminmax(points.flatten(0, 1), dim=0)
        still = high - low < 1e-6 * (1 + high.abs())
        half = torch.where(still, 0.5, 0.0)
        return cls(
            chunk_size=size,
            num_basis=num_basis,
            low=low - half,
            high=high + half,
            degree=degree,
            num_bins=num_bins,
        )

    def to_config(self) -> dict[str, object]:
        """Return the sizes and bounds, from which it is rebuilt."""
        return self.config_of(
            chunk_size=self.chunk_size,
            num_basis=self.num_basis,
            low=self.low.tolist(),
            high=self.high.tolist(),
            degree=self.degree,
            num_bins=self.num_bins,
        )

    @property
    def vocab_size(self) -> int:
        """The number of levels."""
        return self.num_bins

    @property
    def sequence_length(self) -> int:
        """``L``: control points times dimensions."""
        return self.num_basis * self.action_dim

    @property
    def first_steps(self) -> Tensor:
        """First step of each control point's support, ``[L]``."""
        first = (self.basis > 1e-12).to(torch.uint8).argmax(0)
        return first.repeat_interleave(self.action_dim)

    def make_grammar(self) -> PositionGrammar:
        """Return a grammar that allows every level at each of ``L`` positions."""
        shape = (self.sequence_length, self.num_bins)
        return PositionGrammar(torch.ones(shape, dtype=torch.bool))

    def control_points(self, chunks: Tensor) -> Tensor:
        """Return the least-squares control points, float64 ``[*B, num_basis, A]``."""
        fitter = self.fitter.to(chunks.device)
        return fitter @ chunks.to(fitter.dtype)

    def encode(self, actions: Tensor) -> Tensor:
        """Turn chunks ``[*B, H, A]`` into tokens ``[*B, L]``."""
        self._check_chunks(actions)
        low, high = (bound.to(actions.device) for bound in (self.low, self.high))
        share = (self.control_points(actions) - low) / (high - low)
        levels = share.mul_(self.num_bins - 1).round_().clamp_(0, self.num_bins - 1)
        return levels.long().flatten(-2)

    def decode(self, tokens: Tensor) -> Tensor:
        """Turn tokens ``[*B, L]`` into chunks ``[*B, H, A]``."""
        self._check_sequences(tokens)
        self._check_tokens(tokens, 0, self.num_bins)
        levels = tokens.unflatten(-1, (self.num_basis, self.action_dim))
        low, high = (bound.to(tokens.device) for bound in (self.low, self.high))
        share = levels.to(low.dtype) / (self.num_bins - 1)
        points = low + share * (high - low)
        return (self.basis.to(tokens.device) @ points).to(torch.float32)


def check_sizes(chunk_size: int, num_basis: int, degree: int) -> None:
    """Refuse a spline that the chunk does not determine.

    Raises:
        ValueError: not ``degree + 1 <= num_basis <= chunk_size``.
    """
    check_positive_int("BEASTActionTokenizer", "num_basis", num_basis)
    if degree < 0 or not degree + 1 <= num_basis <= chunk_size:
        raise ValueError(
            "BEASTActionTokenizer: expected degree >= 0 and degree + 1 <= num_basis <= "
            f"chunk_size, got degree={degree}, num_basis={num_basis}, "
            f"chunk_size={chunk_size}."
        )


def spline_basis(chunk_size: int, num_basis: int, degree: int) -> Tensor:
    """Return the clamped uniform B-splines at the steps of a chunk, ``[H, num_basis]``.

    Cox and de Boor's recursion; the steps divide ``[0, 1]`` evenly, the last belongs to
    the last spline. Each row sums to 1.

    Examples:
        >>> spline_basis(3, 2, 1)
        tensor([[1.0000, 0.0000],
                [0.5000, 0.5000],
                [0.0000, 1.0000]], dtype=torch.float64)
    """
    inner = torch.linspace(0, 1, num_basis - degree + 1, dtype=torch.float64)
    knots = torch.cat([inner.new_zeros(degree), inner, inner.new_ones(degree)])
    steps = torch.linspace(0, 1, max(chunk_size, 2), dtype=torch.float64)
    steps = steps[:chunk_size].unsqueeze(-1)
    basis = ((knots[:-1] <= steps) & (steps < knots[1:])).double()
    basis[steps.squeeze(-1) == 1, num_basis - 1] = 1.0
    for order in range(1, degree + 1):
        width = knots[order:] - knots[:-order]
        rise = (steps - knots[: -order - 1]) / width[:-1]
        fall = (knots[order + 1 :] - steps) / width[1:]
        rise, fall = (torch.where(each.isfinite(), each, 0.0) for each in (rise, fall))
        basis = rise * basis[:, :-1] + fall * basis[:, 1:]
    return basis
