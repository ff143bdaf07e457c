"""Recording of an expert's demonstrations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from torchrl_vla.data.label_bounds import (
    Labels,
    bound_labels,
    check_labels_option,
    record_labels,
)
from torchrl_vla.data.rollout_frames import frame_columns, frame_statistics
from torchrl_vla.data.sparse_images import EveryNthImage
from torchrl_vla.rollout import (
    EpisodeFailure,
    EpisodeStep,
    Purpose,
    check_acting,
    episode_seeds,
    run_episodes,
)
from torchrl_vla.schema import (
    ACTION_KEY,
    EPISODE_KEY,
    EPISODE_SEED_KEY,
    FRAME_KEY,
    IMAGE_IS_STALE_KEY,
    INSTRUCTION_KEY,
    SUCCESS_KEY,
    ExecutionError,
    InstructionTable,
    MissingKeyError,
    RobotDatasetMetadata,
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
    labels: Labels = "clamp",
    image_interval: int = 1,
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
    once. The dataset's ``provenance`` holds purpose, seed and number of attempts, and
    where there are any, how many frames had labels beyond the bounds of the actions,
    and the attempts that ended in an error (``failed``, with seed and error).

    An attempt that ends in an error is replaced, like one without success. Where the
    collection cannot be completed, the episodes that were kept are written to
    ``<folder>.partial``, which the error names.

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
        labels: what becomes of a target beyond the action bounds in ``env.metadata``:
            ``"clamp"`` = the nearest legal number, which is what an environment that
            clips executes; ``"refuse"`` = an error.
        image_interval: above 1, only every such frame of an episode is rendered, of an
            environment that renders on demand: far faster, as neighbouring images
            hardly differ. The other frames hold the image before and
            ``image_is_stale``: they are targets of chunks and are not sampled.
        overwrite: True = an old dataset in the folder is replaced.
        progress: True = show a progress bar.

    Returns:
        The dataset, opened from the folder.

    Raises:
        ValueError: ``episodes`` is below 1, or no multiple with ``balanced``; there is
            no such purpose or choice of ``labels``.
        ArgumentTypeError: the environment or the policy is of another kind.
        ExecutionError: ``max_attempts`` gave too few successes; or an error came up
            after the first episode was kept.
        MissingKeyError: the environment does not write what a dataset holds.
        SettingsError: an ``image_interval`` of an environment that renders every step.
        SchemaError: the environment renders on demand, and did not render a frame; or
            targets are not finite, of another width or, with ``labels="refuse"``, out
            of bounds.
        KeyboardInterrupt: Ctrl-C; the episodes that were kept are written as after an
            error.
        FileExistsError: the folder has contents and ``overwrite`` is False.
    """
    if episodes < 1:
        raise ValueError(f"collect: expected episodes >= 1, got {episodes}.")
    check_acting("collect", env, policy)
    check_labels_option("collect", labels)
    if image_interval != 1:
        policy = EveryNthImage(policy, env, image_interval)
    instructions, metadata = _description(env)
    if balanced and episodes % len(instructions):
        raise ValueError(
            "collect: expected episodes to be a multiple of the "
            f"{len(instructions)} instructions with balanced=True, got {episodes}. "
            f"Pass a multiple, such as episodes={len(instructions)} (--episodes)."
        )
    folder = Path(folder)
    if not overwrite:
        check_folder_is_free(folder, "collect")  # now, not after all the episodes
    limit = 4 * episodes if max_attempts is None else max_attempts
    groups = len(instructions) if balanced else 1
    kept = _Kept(episodes, groups, getattr(env, "tasks_take_turns", False))
    failures: list[EpisodeFailure] = []
    attempts = skipped = clamped = 0

    def write(to: Path, overwrite: bool) -> Path:
        """Write the episodes that were kept."""
        frames = kept.frames()
        provenance: dict[str, object] = {
            "purpose": purpose,
            "seed": seed,
            "attempts": attempts - skipped,
        }
        provenance = record_labels(provenance, labels, clamped)
        if image_interval != 1:
            provenance["image_interval"] = image_interval
        if failures:
            failed = [{"seed": f.seed, "error": str(f)} for f in failures]
            provenance["failed"] = failed
        described = replace(metadata, **frame_statistics(frames))
        dataset = DemonstrationDataset(frames, described, instructions, provenance)
        return dataset.to_folder(to, overwrite=overwrite)

    with (
        tqdm(total=episodes, desc="collect", unit="ep", disable=not progress) as bar,
        _keeping_what_is_finished(kept, episodes, folder, write),
    ):
        while kept.missing and attempts < limit:
            count = min(
                kept.missing * (kept.groups if attempts else 1), limit - attempts
            )
            numbers = range(attempts, attempts + count)
            attempts += count
            useful = [number for number in numbers if kept.may_need(number)]
            skipped += count - len(useful)
            seeds = [episode_seeds(seed, 1, purpose, number)[0] for number in useful]
            with kept.batch() as finished:
                for index, episode in _record(
                    env, policy, seeds, failures, image_interval != 1
                ):
                    bounded, changed = bound_labels(
                        "collect", episode[ACTION_KEY], metadata, labels
                    )
                    clamped += changed
                    episode[ACTION_KEY] = bounded
                    if not successes_only or bool(episode["next", SUCCESS_KEY].any()):
                        finished[useful[index]] = episode
                        bar.update(min(len(kept) + len(finished), episodes) - bar.n)
            bar.update(len(kept) - bar.n)
        if kept.missing:
            tried = attempts - skipped
            cause = failures[0].error if failures else None
            first = "" if cause is None else f" The first: {cause}"
            raise ExecutionError(
                f"collect: expected {episodes} successful episodes, got {len(kept)} in "
                f"{tried} attempts, {len(failures)} of which ended in an error. "
                f"Improve the expert, lower its noise, or raise max_attempts.{first}"
            ) from cause
    return DemonstrationDataset.from_folder(write(folder, overwrite))


def _description(env: EnvBase) -> tuple[InstructionTable, RobotDatasetMetadata]:
    """Return what a dataset says about the environment's numbers and texts."""
    try:
        return env.instructions, env.metadata
    except AttributeError as error:
        raise MissingKeyError(
            f"collect: expected {type(env).__name__} to have the attributes "
            f"'instructions' and 'metadata', got none: {error}. Set env.instructions = "
            "InstructionTable([...]) and env.metadata = RobotDatasetMetadata(...)."
        ) from error


@contextmanager
def _keeping_what_is_finished(
    kept: _Kept, wanted: int, folder: Path, write: Callable[[Path, bool], Path]
) -> Iterator[None]:
    """Write the episodes that were kept beside the folder when an error comes up."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if not len(kept):
            raise
        partial = write(folder.with_name(f"{folder.name}.partial"), True)
        name = type(error).__name__
        # Ctrl-C stays Ctrl-C: nothing that handles errors may swallow it.
        interrupted = name == "KeyboardInterrupt"
        kind = KeyboardInterrupt if interrupted else ExecutionError
        raise kind(
            f"collect: expected {wanted} episodes, got {len(kept)} before an error "
            f"({name}). These are in {str(partial)!r}, a dataset of their own. {error}"
        ) from error


class _Kept:
    """Episodes that are kept, as many of each group.

    How many are attempted next depends on how many are missing, not on how many
    environments run: an expert without noise gives the same dataset in any number.

    Args:
        episodes: how many are kept in the end.
        groups: number of instructions to be balanced; 1 = they are not.
        takes_turns: True = consecutive episodes have the instructions in turn.
    """

    def __init__(self, episodes: int, groups: int, takes_turns: bool) -> None:
        self.groups = groups
        self._wanted = episodes
        self._episodes: list[TensorDict] = []
        self._count_of: Counter[int] = Counter()
        # Group of each turn, where the environment's tasks take turns.
        self._group_at: dict[int, int] = {}
        self._takes_turns = takes_turns

    def __len__(self) -> int:
        return len(self._episodes)

    @property
    def missing(self) -> int:
        return self._wanted - len(self)

    def may_need(self, number: int) -> bool:
        """Return False for an attempt that would only be dropped: its group is full.

        Known where instructions take turns, as in batches of tasks.
        """
        group = self._group_at.get(number % self.groups)
        if group is None or not self._takes_turns:
            return True
        return self._count_of[group] < self._wanted // self.groups

    @contextmanager
    def batch(self) -> Iterator[dict[int, TensorDict]]:
        """Collect finished episodes, and keep them, also when an error comes up.

        They are kept in the order of their seeds, up to the number.
        """
        finished: dict[int, TensorDict] = {}
        try:
            yield finished
        finally:
            self._add(finished)

    def _add(self, finished: dict[int, TensorDict]) -> None:
        for index in sorted(finished):
            episode = finished[index]
            group = int(episode[INSTRUCTION_KEY][0]) if self.groups > 1 else 0
            turn = self._group_at.setdefault(index % self.groups, group)
            self._takes_turns &= turn == group
            if self._count_of[group] < self._wanted // self.groups:
                self._count_of[group] += 1
                self._episodes.append(episode)

    def frames(self) -> TensorDict:
        """Return the frames of all episodes, numbered from 0 on."""
        for index, episode in enumerate(self._episodes):
            episode.set(EPISODE_KEY, torch.full_like(episode[FRAME_KEY], index))
        return torch.cat(self._episodes)


def _record(
    env: EnvBase,
    policy: TensorDictModuleBase,
    seeds: list[int],
    failures: list[EpisodeFailure],
    is_sparse: bool,
) -> Iterator[tuple[int, TensorDict]]:
    """Yield ``(index of the seed, frames)`` as episodes finish."""
    frames: dict[int, list[dict[NestedKey, Tensor]]] = {}
    with torch.no_grad():
        steps = run_episodes(env, policy, seeds, failures=failures, caller="collect")
        for step in steps:
            columns = _columns(step, seeds, env.instructions, is_sparse)
            for env_index, index in enumerate(step.episode.tolist()):
                if index < 0:
                    continue
                if step.frame[env_index] == 0:  # maybe again, after an error elsewhere
                    frames[index] = []
                frame = {key: value[env_index] for key, value in columns.items()}
                frames[index].append(frame)
                if step.done[env_index]:
                    yield index, _stack(frames.pop(index))


def _columns(
    step: EpisodeStep, seeds: list[int], table: InstructionTable, is_sparse: bool
) -> dict[NestedKey, Tensor]:
    """Return what is stored of a step, each ``[N, ...]``."""
    data = step.data.reshape(-1) if step.data.ndim else step.data.unsqueeze(0)
    columns = frame_columns(data, table, "collect")
    if is_sparse:
        columns[IMAGE_IS_STALE_KEY] = data.get(IMAGE_IS_STALE_KEY)
    else:
        check_images_are_fresh("collect", data[step.episode >= 0])
    columns[FRAME_KEY] = step.frame
    columns[EPISODE_SEED_KEY] = torch.tensor(seeds)[step.episode.clamp_min(0)]
    return {key: value.cpu() for key, value in columns.items()}


def _stack(frames: list[dict[NestedKey, Tensor]]) -> TensorDict:
    out = TensorDict({}, [len(frames)])
    for key in frames[0]:
        out.set(key, torch.stack([frame[key] for frame in frames]))
    return out
