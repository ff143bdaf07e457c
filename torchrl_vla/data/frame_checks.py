"""Check that the numbers of a dataset's frames are finite."""

from __future__ import annotations

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
        where: of the first one: key, row, episode and frame.
        got: its value and dimension, and how many rows are like it.
        episodes: indices of all episodes that have one.
    """

    def __init__(
        self,
        message: str,
        where: str = "",
        got: str = "",
        episodes: tuple[int, ...] = (),
    ) -> None:
        super().__init__(message)
        self.where, self.got, self.episodes = where, got, episodes


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
    others = int(bad.sum()) - 1
    return NonFiniteError(
        f"{owner}: expected finite numbers at {key!r}, got {value[dims].tolist()} at "
        f"dimensions {dims} of frame {frame} of episode {int(episode[row])} (row "
        f"{row}), the first of {others + 1} such frames. Repair them, or leave out "
        f"exclude_episodes={episodes} (--exclude-episodes {listed}).",
        where=f"{key!r} row {row} (episode {int(episode[row])}, frame {frame})",
        got=f"expected finite numbers, got {value[dims[0]].item()} in dimension "
        f"{dims[0]}, and others in {others} more rows",
        episodes=tuple(episodes),
    )
