"""Index of the frames of each episode, in any storage order."""

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
        >>> position, last = index.find(torch.tensor([7]), torch.tensor([1]))
        >>> index.order[position], index.order[last]
        (tensor([4]), tensor([0]))
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
        starts = first.nonzero().squeeze(-1)
        ends = torch.cat([starts[1:], starts.new_tensor([len(episode)])])
        self._episodes = episode[starts]
        # One row per episode, so that a lookup reads one place in memory.
        columns = [self._episodes, starts - frame[starts], starts, ends - 1]
        self._table = torch.stack(columns, dim=-1)

    @property
    def order(self) -> Tensor | None:
        """The row of each position; None = the rows are in order."""
        return self._order

    def __len__(self) -> int:
        """The number of episodes."""
        return len(self._episodes)

    def find(self, episode: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Find frames among the rows sorted by (episode, frame).

        Args:
            episode: int64 ``[*B]``.
            frame: int64 ``[*B]``.

        Returns:
            The position of each frame and that of its episode's last frame, int64
            ``[*B]``.

        Raises:
            MissingKeyError: a frame is not in the index.
        """
        position, _, last = self.find_span(episode, frame)
        return position, last

    def window(
        self, episode: Tensor, frame: Tensor, first_step: int, size: int
    ) -> tuple[Tensor, Tensor]:
        """Find the rows of consecutive frames around each frame.

        Steps outside the episode repeat its first or last frame.

        Args:
            episode: int64 ``[*B]``.
            frame: int64 ``[*B]``.
            first_step: where the windows begin, in steps from the frame.
            size: ``T``, their length.

        Returns:
            Rows, int64 ``[*B, T]``, and bool ``[*B, T]``, True = outside the episode.

        Raises:
            MissingKeyError: a frame is not in the index.
        """
        found = self.find_span(episode.reshape(-1), frame.reshape(-1))
        position, first, last = (value.unsqueeze(-1) for value in found)
        steps = torch.arange(first_step, first_step + size, device=position.device)
        wanted = position + steps
        rows = torch.minimum(torch.maximum(wanted, first), last)
        is_pad = rows != wanted
        if self.order is not None:
            rows = self.order[rows]
        return rows.view(*episode.shape, size), is_pad.view(*episode.shape, size)

    def find_span(
        self, episode: Tensor, frame: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Find frames as :meth:`find` does, with their episode's first frame as well.

        Returns:
            The positions of each frame, of its episode's first and of its last frame.
        """
        which = torch.searchsorted(self._episodes, episode).clamp_(max=len(self) - 1)
        found = self._table.index_select(0, which.flatten())
        found, offset, start, last = found.view(*episode.shape, 4).unbind(-1)
        position = frame + offset
        known = (found == episode) & (position >= start) & (position <= last)
        if not known.all():
            where = (~known).nonzero()[0].tolist()
            raise MissingKeyError(
                "EpisodeIndex: expected stored frames, got frame "
                f"{frame[tuple(where)].item()} of episode "
                f"{episode[tuple(where)].item()} at index {where}. It is not among the "
                f"{len(self)} episodes: the sample comes from another storage."
            )
        return position, start, last


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
