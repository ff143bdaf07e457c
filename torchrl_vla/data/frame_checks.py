"""Check that the numbers of a dataset's frames are finite."""

from __future__ import annotations

from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from torchrl_vla.schema import EPISODE_KEY, FRAME_KEY, SchemaError


def check_finite_numbers(
    owner: str, frames: TensorDictBase, key: NestedKey, rows: Tensor | None = None
) -> None:
    """Refuse NaN and infinity, which only a NaN loss would show after training.

    Args:
        owner: starts the error message.
        frames: ``[F]`` with ``episode_index`` and ``frame_index``.
        key: float ``[F, D]``.
        rows: bool ``[F]``, True = check this frame. None = all.

    Raises:
        SchemaError: names the first episode, frame and dimension, and all episodes.
    """
    good = frames.get(key).as_subclass(Tensor).isfinite().flatten(1).all(1)
    bad = ~good if rows is None else ~good & rows
    if not bad.any():
        return
    row = int(bad.nonzero()[0])
    value = frames.get(key)[row].flatten()
    dims = (~value.isfinite()).nonzero().flatten().tolist()
    episode, frame = frames.get(EPISODE_KEY), frames.get(FRAME_KEY)
    episodes = episode[bad].unique().tolist()
    raise SchemaError(
        f"{owner}: expected finite numbers at {key!r}, got {value[dims].tolist()} at "
        f"dimensions {dims} of frame {int(frame[row])} of episode {int(episode[row])} "
        f"(row {row}), and in {int(bad.sum()) - 1} more frames. Repair them, or leave "
        f"their episodes out: exclude_episodes={episodes} (--exclude-episodes "
        f"{' '.join(map(str, episodes))})."
    )
