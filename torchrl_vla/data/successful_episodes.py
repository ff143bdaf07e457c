"""Selection of the successful episodes of a dataset."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_vla.data.demonstration_dataset import DemonstrationDataset
from torchrl_vla.schema import EPISODE_KEY, SUCCESS_KEY, MissingKeyError, SchemaError


def successful_episodes(frames: TensorDictBase) -> Tensor:
    """Return the indices of the episodes that ended and succeeded, int64 ``[E]``.

    An episode succeeded if ``success`` is True after any of its steps. A truncated
    recording (an episode without ``done``) is left out even if it succeeded, because
    the data do not show how it ended.

    **Reads** frames ``[F]``: ``episode_index`` int64 ``[F]``, ``("next", "success")``
    and ``("next", "done")`` bool ``[F, 1]``.

    Raises:
        MissingKeyError: one of these entries is missing.
        SchemaError: no episode ended with a success.

    Examples:
        >>> from tensordict import TensorDict
        >>> flags = torch.tensor([[False], [True], [False], [True], [True]])
        >>> frames = TensorDict(
        ...     episode_index=torch.tensor([0, 0, 1, 1, 2]),
        ...     next=TensorDict(
        ...         done=flags, success=torch.tensor([[0], [1], [0], [0], [1]]).bool()
        ...     ),
        ... )
        >>> successful_episodes(frames)
        tensor([0, 2])
    """
    needed = [EPISODE_KEY, ("next", SUCCESS_KEY), ("next", "done")]
    episode, success, done = (frames.get(key, None) for key in needed)
    if episode is None or success is None or done is None:
        raise MissingKeyError(
            f"successful_episodes: expected {needed} of frames, got only "
            f"{sorted(map(str, frames.keys(True, True)))}. Record these entries, or "
            "select the episodes by index."
        )
    numbers, group = episode.reshape(-1).unique(return_inverse=True)
    happened = []
    for flag in (success, done):
        count = torch.zeros_like(numbers)
        happened.append(count.index_add_(0, group, flag.reshape(-1).long()) > 0)
    succeeded, ended = happened
    found = numbers[succeeded & ended]
    if not len(found):
        raise SchemaError(
            "successful_episodes: expected an episode that ended with a success, got "
            f"{len(numbers)} episodes, of which {int(ended.sum())} ended and "
            f"{int(succeeded.sum())} succeeded. Nothing is left to learn from."
        )
    return found


def select_successes(dataset: DemonstrationDataset) -> DemonstrationDataset:
    """Return the dataset of the successful episodes, for filtered cloning.

    Filtered cloning is reinforcement learning with a reward of 0 or 1 and no critic:
    roll the policy out, keep its successes, clone them, repeat. The metadata remain
    those of the whole dataset.

    Warning:
        A policy acts with the statistics that it was trained with. Continue its
        training with the ``space=`` of its first training, not with that of new data.

    Args:
        dataset: demonstrations, or rollouts of the policy itself
            (:meth:`DemonstrationDataset.from_rollout`).

    Raises:
        MissingKeyError: the frames lack an entry that :func:`successful_episodes`
            reads.
        SchemaError: no episode succeeded.

    Examples:
        >>> from torchrl_vla.envs import TabletopEnv
        >>> env = TabletopEnv(4, image_size=8, seed=0)
        >>> rollout = env.rollout(25, env.make_expert(), break_when_any_done=False)
        >>> dataset = DemonstrationDataset.from_rollout(
        ...     rollout, env.metadata, env.instructions
        ... )
        >>> dataset.num_episodes, select_successes(dataset).num_episodes
        (11, 7)
    """
    return dataset.select_episodes(successful_episodes(dataset.frames))
