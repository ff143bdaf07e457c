"""Success rate of a policy on episodes with recorded seeds."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase

from torchrl_vla._internal.option_names import OnError as OnError
from torchrl_vla.evaluation.episode_journal import EpisodeJournal
from torchrl_vla.evaluation.evaluation_run import EvaluationRun
from torchrl_vla.evaluation.provenance import hash_weights, make_provenance
from torchrl_vla.evaluation.result import EvaluationResult
from torchrl_vla.evaluation.shards import SHARD, Shard
from torchrl_vla.evaluation.video_export import Recorder
from torchrl_vla.rollout import Purpose, episode_seeds


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
    shard: tuple[int, int] | None = None,
    journal: Path | str | None = None,
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

    With a ``journal``, each finished episode is on the disk before the next begins. A
    process that was killed, or stopped by Ctrl-C, goes on there when it is started
    again, and the result is that of one run. A ``shard`` is a part of the episodes, for
    one of several processes; :func:`merge_shards` makes the result of all.

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
        shard: ``(3, 8)`` runs the third of eight parts, every eighth episode.
        journal: file of finished episodes; it stays when all are finished. Episodes
            that ``recorder`` keeps are run again, to see them.

    Raises:
        ShardError: there is no such shard.
        JournalError: the journal is of another policy or other settings.
        KeyboardInterrupt: Ctrl-C; with a journal it says how many episodes are kept.
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
    known = make_provenance(
        env, seed=seed, purpose=purpose, deterministic=deterministic
    )
    known |= dict(provenance or {})
    indices = None
    if shard is not None and episodes >= 1:
        indices = Shard(*shard).indices(episodes)
        seeds = episode_seeds(seed, episodes, purpose, first)
        known[SHARD] = {
            "number": shard[0],
            "count": shard[1],
            "episodes": episodes,
            "seeds": [seeds[index] for index in indices],
        }
    kept: AbstractContextManager[EpisodeJournal | None] = nullcontext()
    if journal is not None:
        settings = {"policy": hash_weights(policy), **known, "episodes": episodes}
        settings |= {"first": first, "on_error": on_error, "max_steps": max_steps}
        kept = EpisodeJournal(journal, settings)
    with kept as store:
        run.add(
            episodes,
            seed=seed,
            purpose=purpose,
            first=first,
            deterministic=deterministic,
            max_steps=max_steps,
            recorder=recorder,
            indices=indices,
            journal=store,
        )
    return run.result(known)
