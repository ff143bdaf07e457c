"""Where each frame of each episode lies, whatever order the rows are in."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_vla.schema import MissingKeyError, SchemaError


class EpisodeIndex:
    """Find the rows of consecutive frames of an episode by arithmetic.

    The rows are sorted once by (episode, frame). Because an episode then is one run
    without gaps, the row of any frame is ``first row of the episode + frame - first
    frame``: a lookup costs no search over the frames. An episode may begin after
    frame 0 (a ring buffer has overwritten its head); it may not have holes.

    Args:
        episode: int64 ``[N]``, the episode of each row.
        frame: int64 ``[N]``, the step of each row within its episode.

    Keyword Args:
        done: bool ``[N]``, True = this frame ends its episode.

    Raises:
        SchemaError: a frame twice, a hole in an episode, or a done before its end.

    Examples:
        >>> import torch
        >>> episode = torch.tensor([7, 5, 7, 5, 7])  # rows in any order
        >>> frame = torch.tensor([2, 0, 0, 1, 1])
        >>> index = EpisodeIndex(episode, frame)
        >>> rows, is_pad = index.rows(torch.tensor([7]), torch.tensor([1]), 3)
        >>> rows, is_pad
        (tensor([[4, 0, 0]]), tensor([[False, False,  True]]))
    """

    def __init__(
        self, episode: Tensor, frame: Tensor, *, done: Tensor | None = None
    ) -> None:
        self._order = _order(episode, frame)
        if self._order is not None:
            episode, frame = episode[self._order], frame[self._order]
            done = None if done is None else done[self._order]
        continues = episode[1:] == episode[:-1]
        _check_runs(episode, frame, continues, done)
        first = torch.ones_like(episode, dtype=torch.bool)
        first[1:] = ~continues
        self._starts = first.nonzero().squeeze(-1)
        ends = torch.cat([self._starts[1:], self._starts.new_tensor([len(episode)])])
        self._lasts = ends - 1
        self._episodes = episode[self._starts]
        self._frames = frame[self._starts]

    def __len__(self) -> int:
        """The number of episodes."""
        return len(self._episodes)

    def rows(self, episode: Tensor, frame: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Find the rows of ``size`` frames from each given one on.

        Args:
            episode: int64 ``[*B]``.
            frame: int64 ``[*B]``.
            size: ``H``.

        Returns:
            Rows int64 ``[*B, H]`` and bool ``[*B, H]``, True = past the episode's
            last frame; there the row is that of the last frame.

        Raises:
            MissingKeyError: a frame is not in the index.
        """
        which = torch.searchsorted(self._episodes, episode).clamp_(max=len(self) - 1)
        position = self._starts[which] + frame - self._frames[which]
        last = self._lasts[which]
        known = self._episodes[which] == episode
        known &= (position >= self._starts[which]) & (position <= last)
        if not known.all():
            where = (~known).nonzero()[0].tolist()
            raise MissingKeyError(
                "EpisodeIndex: expected stored frames, got frame "
                f"{frame[tuple(where)].item()} of episode "
                f"{episode[tuple(where)].item()} at index {where}. It is not among the "
                f"{len(self)} episodes: the sample comes from another storage."
            )
        steps = torch.arange(size, device=position.device)
        positions = position.unsqueeze(-1) + steps
        is_pad = positions > last.unsqueeze(-1)
        positions = torch.minimum(positions, last.unsqueeze(-1))
        return (
            positions if self._order is None else self._order[positions],
            is_pad,
        )


def _order(episode: Tensor, frame: Tensor) -> Tensor | None:
    """Return the rows sorted by (episode, frame), or None if they are already."""
    before, after = episode[:-1], episode[1:]
    rising = (before < after) | ((before == after) & (frame[:-1] < frame[1:]))
    if rising.all():
        return None
    order = torch.argsort(frame, stable=True)
    return order[torch.argsort(episode[order], stable=True)]


def _check_runs(
    episode: Tensor, frame: Tensor, continues: Tensor, done: Tensor | None
) -> None:
    """Refuse sorted frames from which a target would be wrong."""
    step = frame[1:] - frame[:-1]
    wrong = continues & (step != 1)
    if wrong.any():
        at = int(wrong.nonzero()[0])
        what = "twice" if step[at] == 0 else f"followed by frame {int(frame[at + 1])}"
        raise SchemaError(
            "EpisodeIndex: expected each episode's frames once and without holes, got "
            f"frame {int(frame[at])} of episode {int(episode[at])} {what}. Number "
            "episodes uniquely and store them whole."
        )
    if done is not None and (early := continues & done[:-1]).any():
        at = int(early.nonzero()[0])
        raise SchemaError(
            "EpisodeIndex: expected done only at an episode's last frame, got it at "
            f"frame {int(frame[at])} of episode {int(episode[at])}, which goes on. "
            "Give what follows a done another episode index, or pass done_key=None."
        )
