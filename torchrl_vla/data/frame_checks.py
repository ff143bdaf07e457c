"""Check that the numbers of a dataset's frames are finite."""

from __future__ import annotations

from collections.abc import Sequence

from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from torchrl_vla.schema import (
    ACTION_KEY,
    ENVIRONMENT_STATE_KEY,
    EPISODE_KEY,
    FRAME_KEY,
    IS_LABELED_KEY,
    STATE_KEY,
    SchemaError,
)


class NonFiniteError(SchemaError):
    """Numbers of a dataset's frames that are not finite.

    Args:
        message: the error message.
        frames: ``[F]`` with the refused entry, ``episode_index`` and ``frame_index``.
        episodes: indices of the episodes to leave out.
    """

    def __init__(
        self, message: str, frames: TensorDictBase, episodes: Sequence[int]
    ) -> None:
        super().__init__(message, frames, episodes)  # all of them, to be pickled
        self.frames, self.episodes = frames, tuple(episodes)

    def __str__(self) -> str:
        return str(self.args[0])


def check_finite_frames(owner: str, frames: TensorDictBase) -> None:
    """Refuse NaN and infinity, which only a NaN loss would show after training.

    Actions of frames without a label are no targets and are passed over.

    Args:
        owner: starts the error message.
        frames: ``[F]`` with ``episode_index`` and ``frame_index``.

    Raises:
        NonFiniteError: names the first episode, frame and dimension, and all episodes.
    """
    labels = frames.get(IS_LABELED_KEY, None)
    for key in (ACTION_KEY, STATE_KEY, ENVIRONMENT_STATE_KEY):
        value = frames.get(key, None)
        if value is None or not value.is_floating_point():
            continue
        bad = ~value.as_subclass(Tensor).isfinite().flatten(1).all(1)
        if key == ACTION_KEY and labels is not None:
            bad = bad & labels.reshape(-1)
        if bad.any():
            raise _refusal(owner, frames, key, bad)


def _refusal(
    owner: str, frames: TensorDictBase, key: NestedKey, bad: Tensor
) -> NonFiniteError:
    row = int(bad.nonzero()[0])
    value = frames.get(key)[row].flatten()
    dims = (~value.isfinite()).nonzero().flatten().tolist()
    frame, episode = int(frames.get(FRAME_KEY)[row]), frames.get(EPISODE_KEY)
    episodes = episode[bad].unique().tolist()
    listed = " ".join(map(str, episodes))
    return NonFiniteError(
        f"{owner}: expected finite numbers at {key!r}, got {value[dims].tolist()} at "
        f"dimensions {dims} of frame {frame} of episode {int(episode[row])} (row "
        f"{row}), the first of {int(bad.sum())} such frames. Repair them, or leave out "
        f"exclude_episodes={episodes} (--exclude-episodes {listed}).",
        frames.select(key, EPISODE_KEY, FRAME_KEY),
        episodes,
    )
