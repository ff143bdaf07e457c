"""Choice of a dataset's episodes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDict
from torch import Tensor

from torchrl_vla.schema import EPISODE_KEY


def choose_episodes(
    owner: str,
    frames: TensorDict,
    episodes: Tensor | Sequence[int] | None = None,
    exclude: Sequence[int] = (),
) -> TensorDict:
    """Return the frames of some episodes; all of them are the frames themselves.

    Args:
        owner: starts the error message.
        frames: ``[F]`` with ``episode_index``.
        episodes: indices to keep; None = all.
        exclude: indices to leave out of those.

    Raises:
        ValueError: an episode is unknown, or none is left.
    """
    if episodes is None and not len(exclude):
        return frames
    mine = frames.get(EPISODE_KEY).as_subclass(Tensor)
    known = mine.unique()
    kept = known if episodes is None else torch.as_tensor(episodes, dtype=torch.int64)
    left_out = torch.tensor(exclude, dtype=torch.int64)
    named = torch.cat([kept, left_out])
    unknown = named[~torch.isin(named, known)].tolist()
    kept = kept[~torch.isin(kept, left_out)]
    if unknown or not len(kept):
        raise ValueError(
            f"{owner}: expected some of the {len(known)} episodes from {int(known[0])} "
            f"to {int(known[-1])}, got {unknown or 'none'}."
        )
    return frames[torch.isin(mine, kept)]
