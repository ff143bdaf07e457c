"""Running of an evaluation's episodes, and what is kept of each."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import get_args

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type
from tqdm import tqdm

from torchrl_vla._internal.option_names import OnError
from torchrl_vla.evaluation.episode_journal import EpisodeJournal
from torchrl_vla.evaluation.provenance import describe_noise
from torchrl_vla.evaluation.result import EpisodeRecord, EvaluationResult
from torchrl_vla.evaluation.video_export import Recorder
from torchrl_vla.rollout import (
    EpisodeFailure,
    EpisodeStep,
    Purpose,
    check_acting,
    episode_seeds,
    run_episodes,
)
from torchrl_vla.schema import (
    INSTRUCTION_KEY,
    SUCCESS_KEY,
    InstructionTable,
    MissingKeyError,
    VLAError,
    instruction_texts,
    is_text,
)


class EvaluationRun:
    """Episodes of an evaluation so far.

    Args:
        env: as of :func:`evaluate`, as are the others.
        policy: acts.
        on_error: what an episode counts as that ends in an error.
        progress: True = show a progress bar.
    """

    def __init__(
        self,
        env: EnvBase,
        policy: TensorDictModuleBase,
        on_error: OnError,
        progress: bool,
    ) -> None:
        if on_error not in get_args(OnError):
            raise ValueError(
                f"evaluate: expected on_error of {get_args(OnError)}, got {on_error!r}."
            )
        check_acting("evaluate", env, policy)
        self.env, self.policy = env, policy
        self.on_error, self.progress = on_error, progress
        self.episodes: list[EpisodeRecord] = []
        self.apart: list[EpisodeRecord] = []
        self._failures: list[EpisodeFailure] = []

    def __len__(self) -> int:
        return len(self.episodes) + len(self.apart)

    def add(
        self,
        episodes: int,
        *,
        seed: int,
        purpose: Purpose,
        first: int,
        deterministic: bool,
        max_steps: int | None,
        recorder: Recorder | None = None,
        indices: Sequence[int] | None = None,
        journal: EpisodeJournal | None = None,
    ) -> None:
        """Run those of ``episodes`` with these indices; None = all.

        See :func:`evaluate` for the other arguments and the errors.
        """
        if episodes < 1:
            raise ValueError(f"evaluate: expected episodes >= 1, got {episodes}.")
        seeds = episode_seeds(seed, episodes, purpose, first)
        wanted = range(episodes) if indices is None else indices
        records = {} if journal is None else dict(journal.records)
        seen = () if recorder is None else recorder.indices
        left = [index for index in wanted if index not in records or index in seen]
        kind = (
            ExplorationType.DETERMINISTIC if deterministic else ExplorationType.RANDOM
        )
        failures: list[EpisodeFailure] = []
        known = [records[index] for index in wanted if index not in left]
        bar = _Progress(known, len(wanted), self.progress)
        with (
            torch.no_grad(),
            set_exploration_type(kind),
            _saying_what_is_kept(journal, len(wanted)),
            bar,
        ):
            for index, record in self._run(left, seeds, max_steps, recorder, failures):
                records[index] = record
                if journal is not None:
                    journal.add(index, record)
                bar.add(record)
        self._failures += failures
        for index in wanted:
            record = records[index]
            is_apart = record.error is not None and self.on_error == "apart"
            (self.apart if is_apart else self.episodes).append(record)
        if failures and len(self._failures) < len(self):
            how = "count as failures" if self.on_error == "failure" else "are apart"
            warnings.warn(
                f"evaluate: {len(failures)} of {len(wanted)} episodes ended in an "
                f"error and {how}; the first, seed {failures[0].seed}: {failures[0]}",
                stacklevel=3,
            )

    def _run(
        self,
        indices: list[int],
        seeds: Sequence[int],
        max_steps: int | None,
        recorder: Recorder | None,
        failures: list[EpisodeFailure],
    ) -> Iterator[tuple[int, EpisodeRecord]]:
        """Yield the record of each of the episodes ``indices`` as it ends."""
        table = getattr(self.env, "instructions", None)
        running = {index: _Running() for index in indices}
        numbers = torch.tensor([*indices, -1])  # the last one is that of episode -1
        reported = 0

        def new_failures() -> Iterator[tuple[int, EpisodeRecord]]:
            nonlocal reported
            for failure in failures[reported:]:
                index = indices[failure.index]
                yield index, running[index].record(seeds[index], str(failure))
            reported = len(failures)

        for step in run_episodes(
            self.env,
            self.policy,
            [seeds[index] for index in indices],
            max_steps=max_steps,
            failures=None if self.on_error == "raise" else failures,
            caller="evaluate",
        ):
            yield from new_failures()
            step = replace(step, episode=numbers[step.episode.cpu()])
            _add(step, running, table)
            if recorder is not None:
                recorder.add(step, self.env)
            ended = step.done.cpu() & (step.episode >= 0)
            for index in step.episode[ended].tolist():
                yield index, running[index].record(seeds[index], None)
        yield from new_failures()

    def result(self, provenance: Mapping[str, object]) -> EvaluationResult:
        """Return all episodes so far; an error, if all of them ended in one."""
        if self._failures and len(self._failures) == len(self):
            raise self._failures[0].error
        known = {**describe_noise(self.policy), **provenance}
        if any(e.error is not None for e in (*self.episodes, *self.apart)):
            known["on_error"] = self.on_error  # says what the rate counts
        return EvaluationResult(self.episodes, known, self.apart)


class _Progress:
    """Progress bar with the success rate, episodes per minute and remaining time."""

    def __init__(self, known: Sequence[EpisodeRecord], total: int, show: bool) -> None:
        self._finished = len(known)
        self._successes = sum(record.success for record in known)
        self._before, self._start = self._finished, time.monotonic()
        self._bar = tqdm(
            total=total,
            initial=self._finished,
            desc="evaluate",
            unit="ep",
            disable=not show,
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}"
            "{postfix}]",
        )

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def add(self, record: EpisodeRecord) -> None:
        self._finished += 1
        self._successes += record.success
        minutes = (time.monotonic() - self._start) / 60
        speed = (self._finished - self._before) / max(minutes, 1e-9)
        self._bar.set_postfix_str(
            f"{speed:.1f} ep/min, "
            f"success={100 * self._successes / self._finished:.0f} %",
            refresh=False,
        )
        self._bar.update()


@contextmanager
def _saying_what_is_kept(
    journal: EpisodeJournal | None, episodes: int
) -> Iterator[None]:
    """Add to an error that ends an evaluation which of its episodes are kept."""
    try:
        yield
    except (KeyboardInterrupt, VLAError) as error:
        if journal is None or not journal.records:
            raise
        kept = (
            f"{len(journal.records)} of {episodes} episodes are finished and kept in "
            f"{str(journal.path)!r}: the same evaluation goes on there."
        )
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"evaluate: interrupted. {kept}") from None
        error.args = (f"{error} {kept}", *error.args[1:])
        raise


class _Running:
    """An episode so far."""

    def __init__(self, instruction: str = "", solved_at_reset: bool = False) -> None:
        self.instruction = instruction
        self.success = self.solved_at_reset = solved_at_reset
        self.total = 0.0
        self.length = 0

    def record(self, seed: int, error: str | None) -> EpisodeRecord:
        """Return what is kept of it; with an error it is no success."""
        return EpisodeRecord(
            seed,
            self.instruction,
            self.success and error is None,
            self.total,
            self.length,
            self.solved_at_reset,
            error,
        )


def _add(
    step: EpisodeStep, running: dict[int, _Running], table: InstructionTable | None
) -> None:
    data = step.data
    success = data.get(("next", SUCCESS_KEY), None)
    if success is None:
        raise MissingKeyError(
            f"evaluate: expected a bool at ('next', {SUCCESS_KEY!r}), got only "
            f"{sorted(map(str, data.get('next').keys(True, True)))}. The environment "
            "has to say whether the task was achieved; a reward does not."
        )
    success = success.reshape(-1).tolist()
    reward = data.get(("next", "reward")).reshape(-1).tolist()
    if bool((step.frame == 0).any()):
        texts = _texts(data, table)
        at_reset = data.get(SUCCESS_KEY, None)
        solved = [False] * len(success) if at_reset is None else at_reset.flatten()
    for env_index, index in enumerate(step.episode.tolist()):
        if index < 0:
            continue
        if step.frame[env_index] == 0:  # for the second time, after an error elsewhere
            running[index] = _Running(texts[env_index], bool(solved[env_index]))
        run = running[index]
        run.success = run.success or success[env_index]
        run.total += reward[env_index]
        run.length += 1


def _texts(data: TensorDictBase, table: InstructionTable | None) -> list[str]:
    value = data.get(INSTRUCTION_KEY, None)
    if value is None:
        return [""] * max(1, data.numel())
    if is_text(value):
        texts = instruction_texts(value)
        return texts if len(texts) == data.numel() else texts * data.numel()
    if table is None:
        raise MissingKeyError(
            "evaluate: expected env.instructions to turn the ids at "
            f"{INSTRUCTION_KEY!r} into text, got none. Set env.instructions."
        )
    return table.decode(value.reshape(-1).cpu())
