"""Recording of an expert's demonstrations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from tensordict import NestedKey, TensorDict
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import EnvBase
from tqdm import tqdm

from torchrl_vla.data.demonstration_dataset import DemonstrationDataset
from torchrl_vla.data.demonstrations import check_folder_is_free
from torchrl_vla.data.rollout_frames import frame_columns, frame_statistics
from torchrl_vla.rollout import EpisodeStep, Purpose, episode_seeds, run_episodes
from torchrl_vla.schema import (
    EPISODE_KEY,
    EPISODE_SEED_KEY,
    FRAME_KEY,
    INSTRUCTION_KEY,
    SUCCESS_KEY,
    ExecutionError,
    InstructionTable,
    check_images_are_fresh,
)


def collect(
    env: EnvBase,
    policy: TensorDictModuleBase,
    episodes: int,
    *,
    folder: Path | str,
    seed: int = 0,
    purpose: Purpose = "demonstrations",
    successes_only: bool = True,
    balanced: bool = False,
    max_attempts: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> DemonstrationDataset:
    """Run an expert and write whole episodes to a folder.

    The target that is stored as ``action`` is ``expert_action`` where the expert
    writes one (what it meant before noise was added), else ``action``. With an
    :class:`~torchrl_vla.execution.InterventionPolicy` as policy, ``is_intervention``
    and ``is_labeled`` are stored, too; give it ``successes_only=False``, as failures
    are what it corrects. Statistics are computed from what is stored, of actions from
    those that are labeled. Frames are held in memory until the end, then written at
    once. The dataset's ``provenance`` holds purpose, seed and number of attempts.

    Args:
        env: with ``instructions``, ``metadata`` and episode seeds.
        policy: the expert; in evaluation mode meanwhile.
        episodes: how many to keep, exactly.
        folder: where the dataset goes.
        seed: attempt ``i`` starts from ``episode_seeds(seed, ..., purpose)[i]``.
        purpose: what the initial states are for; see :func:`episode_seeds`.
        successes_only: True = episodes without success are dropped and replaced.
        balanced: True = as many episodes of each of the environment's instructions;
            ``episodes`` must be a multiple of their number.
        max_attempts: give up after so many; four times ``episodes`` by default.
        overwrite: True = an old dataset in the folder is replaced.
        progress: True = show a progress bar.

    Returns:
        The dataset, opened from the folder.

    Raises:
        ValueError: ``episodes`` is below 1, or no multiple with ``balanced``; there is
            no such purpose.
        ExecutionError: ``max_attempts`` gave too few successes.
        MissingKeyError: the environment does not write what a dataset holds.
        SchemaError: the environment renders on demand, and did not render a frame.
        FileExistsError: the folder has contents and ``overwrite`` is False.
    """
    if episodes < 1:
        raise ValueError(f"collect: expected episodes >= 1, got {episodes}.")
    if balanced and episodes % len(env.instructions):
        raise ValueError(
            "collect: expected episodes to be a multiple of the "
            f"{len(env.instructions)} instructions with balanced=True, got {episodes}."
        )
    folder = Path(folder)
    if not overwrite:
        check_folder_is_free(folder, "collect")  # now, not after all the episodes
    limit = 4 * episodes if max_attempts is None else max_attempts
    kept = _Kept(episodes, len(env.instructions) if balanced else 1)
    attempts = 0
    with tqdm(total=episodes, desc="collect", unit="ep", disable=not progress) as bar:
        while kept.missing and attempts < limit:
            count = min(
                kept.missing * (kept.groups if attempts else 1), limit - attempts
            )
            seeds = episode_seeds(seed, count, purpose, attempts)
            attempts += count
            finished: dict[int, TensorDict] = {}
            for index, episode in _record(env, policy, seeds):
                if not successes_only or bool(episode["next", SUCCESS_KEY].any()):
                    finished[index] = episode
                    bar.update(min(len(kept) + len(finished), episodes) - bar.n)
            kept.add(finished)
            bar.update(len(kept) - bar.n)
    if kept.missing:
        raise ExecutionError(
            f"collect: expected {episodes} successful episodes, got {len(kept)} in "
            f"{attempts} attempts. Improve the expert, lower its noise, or raise "
            "max_attempts."
        )
    frames = kept.frames()
    metadata = replace(env.metadata, **frame_statistics(frames))
    provenance = {"purpose": purpose, "seed": seed, "attempts": attempts}
    dataset = DemonstrationDataset(frames, metadata, env.instructions, provenance)
    return DemonstrationDataset.from_folder(
        dataset.to_folder(folder, overwrite=overwrite)
    )


class _Kept:
    """Episodes that are kept, as many of each group.

    How many are attempted next depends on how many are missing, not on how many
    environments run: an expert without noise gives the same dataset in any number.

    Args:
        episodes: how many are kept in the end.
        groups: number of instructions to be balanced; 1 = they are not.
    """

    def __init__(self, episodes: int, groups: int) -> None:
        self.groups = groups
        self._wanted = episodes
        self._episodes: list[TensorDict] = []
        self._count_of: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._episodes)

    @property
    def missing(self) -> int:
        return self._wanted - len(self)

    def add(self, finished: dict[int, TensorDict]) -> None:
        """Keep finished episodes, in the order of their seeds, up to the number."""
        for index in sorted(finished):
            episode = finished[index]
            group = int(episode[INSTRUCTION_KEY][0]) if self.groups > 1 else 0
            if self._count_of[group] < self._wanted // self.groups:
                self._count_of[group] += 1
                self._episodes.append(episode)

    def frames(self) -> TensorDict:
        """Return the frames of all episodes, numbered from 0 on."""
        for index, episode in enumerate(self._episodes):
            episode.set(EPISODE_KEY, torch.full_like(episode[FRAME_KEY], index))
        return torch.cat(self._episodes)


def _record(
    env: EnvBase, policy: TensorDictModuleBase, seeds: list[int]
) -> Iterator[tuple[int, TensorDict]]:
    """Yield ``(index of the seed, frames)`` as episodes finish."""
    frames: dict[int, list[dict[NestedKey, Tensor]]] = {}
    with torch.no_grad():
        for step in run_episodes(env, policy, seeds):
            columns = _columns(step, seeds, env.instructions)
            for env_index, index in enumerate(step.episode.tolist()):
                if index < 0:
                    continue
                frame = {key: value[env_index] for key, value in columns.items()}
                frames.setdefault(index, []).append(frame)
                if step.done[env_index]:
                    yield index, _stack(frames.pop(index))


def _columns(
    step: EpisodeStep, seeds: list[int], table: InstructionTable
) -> dict[NestedKey, Tensor]:
    """Return what is stored of a step, each ``[N, ...]``."""
    data = step.data.reshape(-1) if step.data.ndim else step.data.unsqueeze(0)
    columns = frame_columns(data, table, "collect")
    check_images_are_fresh("collect", data[step.episode >= 0])
    columns[FRAME_KEY] = step.frame
    columns[EPISODE_SEED_KEY] = torch.tensor(seeds)[step.episode.clamp_min(0)]
    return {key: value.cpu() for key, value in columns.items()}


def _stack(frames: list[dict[NestedKey, Tensor]]) -> TensorDict:
    out = TensorDict({}, [len(frames)])
    for key in frames[0]:
        out.set(key, torch.stack([frame[key] for frame in frames]))
    return out
