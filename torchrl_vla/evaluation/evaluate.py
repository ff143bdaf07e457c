"""Success rate of a policy on episodes with recorded seeds."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import get_args

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type
from tqdm import tqdm

from torchrl_vla._internal.option_names import OnError as OnError
from torchrl_vla.evaluation.provenance import describe_noise, make_provenance
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
    instruction_texts,
    is_text,
)


def evaluate(
    env: EnvBase,
    policy: TensorDictModuleBase,
    episodes: int,
    *,
    seed: int = 0,
    purpose: Purpose = "evaluation",
    first: int = 0,
    deterministic: bool = True,
    max_steps: int | None = None,
    recorder: Recorder | None = None,
    on_error: OnError = "failure",
    provenance: Mapping[str, object] | None = None,
    progress: bool = True,
) -> EvaluationResult:
    """Run exactly ``episodes`` episodes and count the successes.

    Episode ``i`` starts from seed ``episode_seeds(seed, ...)[i]``, in whichever
    environment it runs, and the noise of a policy that samples is a function of that
    seed and the step. So the result does not depend on how many environments run side
    by side, and two policies get the same initial states and the same noise. An
    episode succeeds when ``success`` is True after any of its steps, or at its reset.
    The policy is in evaluation mode meanwhile.

    An episode that ends in an error (the physics diverge, a worker process ends, the
    policy says NaN) costs no other: its record holds the error, a warning says so, and
    ``on_error`` is what it counts as. Where no episode can be finished, the error is
    raised.

    Note:
        No episode has the initial state of a demonstration that ``collect`` recorded,
        or of an episode of ``finetune``, whatever the seeds: their purposes differ. To
        evaluate on those, name the purpose.

    **Reads** ``language_instruction``, ``("next", "success")`` and
    ``("next", "reward")``.

    Args:
        env: batched with episode seeds, or unbatched.
        policy: observation to ``action``; a chunk policy inside its executor.
        episodes: how many.
        seed: of the run.
        purpose: what the initial states are for; see :func:`episode_seeds`.
        first: the run's episode to begin with; those before it are left out.
        deterministic: True = the policy's mode, False = it samples.
        max_steps: raise when an episode takes longer; None trusts the environment.
        recorder: keeps images of some episodes.
        on_error: what an episode counts as that ends in an error: ``"failure"`` = as
            one, in the rate; ``"apart"`` = it is listed in ``result.apart`` and is not
            in the rate; ``"raise"`` = the first error is raised.
        provenance: what you know beyond the seed, the environment and the versions,
            such as ``{"policy": hash_folder(folder)}``; goes into the result.
        progress: True = show a progress bar with the rate so far.

    Raises:
        ValueError: ``episodes < 1``, or there is no such purpose or ``on_error``.
        ArgumentTypeError: the environment or the policy is of another kind.
        ExecutionError: see :func:`run_episodes`.
        MissingKeyError: the environment writes no success, or the policy no action.

    Examples:
        >>> from torchrl_vla.envs import TabletopEnv
        >>> env = TabletopEnv(4, image_size=16)
        >>> result = evaluate(env, env.make_expert(), 6, progress=False)
        >>> result.success_rate, len(result), result.episodes[5].seed
        (1.0, 6, 536870917)
    """
    run = EvaluationRun(env, policy, on_error, progress)
    run.add(
        episodes,
        seed=seed,
        purpose=purpose,
        first=first,
        deterministic=deterministic,
        max_steps=max_steps,
        recorder=recorder,
    )
    known = make_provenance(
        env, seed=seed, purpose=purpose, deterministic=deterministic
    )
    return run.result({**known, **(provenance or {})})


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
    ) -> None:
        """Run episodes; see :func:`evaluate` for the arguments and errors."""
        if episodes < 1:
            raise ValueError(f"evaluate: expected episodes >= 1, got {episodes}.")
        seeds = episode_seeds(seed, episodes, purpose, first)
        kind = (
            ExplorationType.DETERMINISTIC if deterministic else ExplorationType.RANDOM
        )
        table = getattr(self.env, "instructions", None)
        running = [_Running() for _ in seeds]
        failures: list[EpisodeFailure] = []
        finished = successes = 0
        with (
            torch.no_grad(),
            set_exploration_type(kind),
            tqdm(
                total=episodes, desc="evaluate", unit="ep", disable=not self.progress
            ) as bar,
        ):
            for step in run_episodes(
                self.env,
                self.policy,
                seeds,
                max_steps=max_steps,
                failures=None if self.on_error == "raise" else failures,
                caller="evaluate",
            ):
                _add(step, running, table)
                if recorder is not None:
                    recorder.add(step, self.env)
                ended = step.done.cpu() & (step.episode >= 0)
                for index in step.episode[ended].tolist():
                    finished += 1
                    successes += running[index].success
                    rate = f"{100 * successes / finished:.0f} %"
                    bar.set_postfix(success=rate, refresh=False)
                    bar.update()
        errors = {failure.index: str(failure) for failure in failures}
        self._failures += failures
        for index, (seed_, run) in enumerate(zip(seeds, running, strict=True)):
            is_apart = index in errors and self.on_error == "apart"
            records = self.apart if is_apart else self.episodes
            records.append(run.record(seed_, errors.get(index)))
        if failures and len(self._failures) < len(self):
            how = "count as failures" if self.on_error == "failure" else "are apart"
            warnings.warn(
                f"evaluate: {len(failures)} of {episodes} episodes ended in an error "
                f"and {how}; the first, seed {failures[0].seed}: {failures[0]}",
                stacklevel=3,
            )

    def result(self, provenance: Mapping[str, object]) -> EvaluationResult:
        """Return all episodes so far; an error, if all of them ended in one."""
        if self._failures and len(self._failures) == len(self):
            raise self._failures[0].error
        known = {**describe_noise(self.policy), **provenance}
        if self._failures:
            known["on_error"] = self.on_error  # says what the rate counts
        return EvaluationResult(self.episodes, known, self.apart)


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
    step: EpisodeStep, running: list[_Running], table: InstructionTable | None
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
