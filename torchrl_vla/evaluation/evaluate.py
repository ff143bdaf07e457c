"""Success rate of a policy on episodes with recorded seeds."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type
from tqdm import tqdm

from torchrl_vla.evaluation.provenance import describe_noise, make_provenance
from torchrl_vla.evaluation.result import EpisodeRecord, EvaluationResult
from torchrl_vla.evaluation.video_export import Recorder
from torchrl_vla.rollout import EpisodeStep, Purpose, episode_seeds, run_episodes
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
    provenance: Mapping[str, object] | None = None,
    progress: bool = True,
) -> EvaluationResult:
    """Run exactly ``episodes`` episodes and count the successes.

    Episode ``i`` starts from seed ``episode_seeds(seed, ...)[i]``, in whichever
    environment it runs, and the noise of a policy that samples is a function of that
    seed and the step. So the result does not depend on how many environments run side
    by side, and two policies get the same initial states and the same noise. An
    episode succeeds when ``success`` is True after any of its steps. The policy is in
    evaluation mode meanwhile.

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
        provenance: what you know beyond the seed, the environment and the versions,
            such as ``{"policy": hash_folder(folder)}``; goes into the result.
        progress: True = show a progress bar with the rate so far.

    Raises:
        ValueError: ``episodes < 1``, or there is no such purpose.
        ExecutionError: see :func:`run_episodes`.
        MissingKeyError: the environment writes no success, or the policy no action.

    Examples:
        >>> from torchrl_vla.envs import TabletopEnv
        >>> env = TabletopEnv(4, image_size=16)
        >>> result = evaluate(env, env.make_expert(), 6, progress=False)
        >>> result.success_rate, len(result), result.episodes[5].seed
        (1.0, 6, 536870917)
    """
    if episodes < 1:
        raise ValueError(f"evaluate: expected episodes >= 1, got {episodes}.")
    seeds = episode_seeds(seed, episodes, purpose, first)
    kind = ExplorationType.DETERMINISTIC if deterministic else ExplorationType.RANDOM
    table = getattr(env, "instructions", None)
    running = [_Running() for _ in seeds]
    noise = describe_noise(policy)
    finished = successes = 0
    with (
        torch.no_grad(),
        set_exploration_type(kind),
        tqdm(total=episodes, desc="evaluate", unit="ep", disable=not progress) as bar,
    ):
        for step in run_episodes(env, policy, seeds, max_steps=max_steps):
            _add(step, running, table)
            if recorder is not None:
                recorder.add(step, env)
            for index in step.episode[step.done.cpu() & (step.episode >= 0)].tolist():
                finished += 1
                successes += running[index].success
                rate = f"{100 * successes / finished:.0f} %"
                bar.set_postfix(success=rate, refresh=False)
                bar.update()
    records = [
        EpisodeRecord(seed, run.instruction, run.success, run.total, run.length)
        for seed, run in zip(seeds, running, strict=True)
    ]
    known = make_provenance(
        env, seed=seed, purpose=purpose, deterministic=deterministic
    )
    return EvaluationResult(records, {**known, **noise, **(provenance or {})})


class _Running:
    """An episode so far."""

    def __init__(self) -> None:
        self.instruction = ""
        self.success = False
        self.total = 0.0
        self.length = 0


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
    for env_index, index in enumerate(step.episode.tolist()):
        if index < 0:
            continue
        run = running[index]
        if step.frame[env_index] == 0:
            run.instruction = texts[env_index]
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
