"""Fine-tuning of a cloned policy by reinforcement learning, one whole job."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase
from tqdm import tqdm

from torchrl_vla._internal.durable_files import write_text
from torchrl_vla.data.demonstrations import check_demonstrations
from torchrl_vla.distributed import Ranks, rank_seed
from torchrl_vla.errors import ResumeError, SettingsError
from torchrl_vla.evaluation import (
    Comparison,
    EvaluationResult,
    compare,
    hash_weights,
)
from torchrl_vla.policies import StochasticVLAWrapper, VLAWrapperBase, as_policy
from torchrl_vla.policies.protocol import check_module
from torchrl_vla.profiling import Sections, TrainingProfiler
from torchrl_vla.recipes.checkpoints import interval_of
from torchrl_vla.recipes.dataset_opening import Demonstrations
from torchrl_vla.recipes.finetuning.finetune_settings import FinetuneSettings
from torchrl_vla.recipes.finetuning.learner import Learner
from torchrl_vla.recipes.finetuning.off_policy_algorithms import OffPolicy
from torchrl_vla.recipes.finetuning.off_policy_learner import (
    REPLAY,
    OffPolicyLearner,
    check_off_policy,
)
from torchrl_vla.recipes.finetuning.policies import (
    check_finetunable,
    make_executor,
    save_finetuned,
)
from torchrl_vla.recipes.finetuning.rollouts import (
    Rollouts,
    WorkerRollouts,
    make_decision_env,
)
from torchrl_vla.recipes.finetuning.run_log import RunLog
from torchrl_vla.recipes.finetuning.training_evaluations import TrainingEvaluations
from torchrl_vla.recipes.parallel_training import check_agreement
from torchrl_vla.recipes.training_state import TrainingState, check_training_folder
from torchrl_vla.rollout import check_device, check_environment, iteration_seed
from torchrl_vla.spaces import ModelSpace

#: What a fine-tuning writes to its folder beside its state.
_OWN_NAMES = (
    *("comparison.json", "evaluations", "log.csv", "policy", "profiling"),
    *("tensorboard", REPLAY),
)
_COUNTS = (
    "iteration",
    "seconds",
    "env_steps",
    "decisions",
    "episodes",
    "train_success",
)
_SUCCESS = ("success", "success_low", "success_high")
_COLUMNS = (
    *_COUNTS,
    *("loss_objective", "loss_critic", "loss_entropy", "loss_reference_kl", "loss_bc"),
    *("clip_fraction", "kl_approx", "max_ratio", "entropy", "reference_kl"),
    *("explained_variance", "policy_update_fraction"),
    *_SUCCESS,
)
_OFF_POLICY_COLUMNS = (
    *_COUNTS,
    *("updates", "replay", "loss_qvalue", "loss_actor", "loss_alpha", "q_value"),
    *("td_error", "alpha", "entropy"),
    *_SUCCESS,
)


@dataclass(frozen=True)
class FinetuneResult:
    """Evaluations and learning curve of a fine-tuning.

    Args:
        before: evaluation of the policy as it was given.
        after: evaluation of the trained policy, on the same seeds.
        comparison: the two, paired.
        log: one line of numbers per iteration.
    """

    before: EvaluationResult
    after: EvaluationResult
    comparison: Comparison
    log: list[dict[str, float]]


def finetune(
    policy: VLAWrapperBase,
    space: ModelSpace | None,
    env: EnvBase,
    folder: Path | str,
    settings: FinetuneSettings | None = None,
    *,
    critic: TensorDictModuleBase | None = None,
    eval_env: EnvBase | None = None,
    demonstrations: Demonstrations | None = None,
    collector: Any | None = None,
    profiler: TrainingProfiler | None = None,
    tensorboard: bool = False,
    progress: bool = True,
) -> FinetuneResult:
    """Improve a policy by reinforcement learning, and say by how much.

    Each iteration collects a batch of decisions with the current weights, estimates
    their advantages and takes optimizer steps on :class:`ChunkPPOLoss`; with an
    off-policy algorithm it adds the batch to a replay and takes optimizer steps on
    batches of that. A folder that
    holds an unfinished training of the same policy with the same settings is resumed:
    in one process the weights become those of an uninterrupted training, bit for bit.

    In a process group (``torchrun``) every rank collects in environments of its own,
    and all learn from all decisions, each computing its share of every minibatch. The
    first rank evaluates and writes.

    Note:
        The policy samples while it learns and is evaluated without sampling.

    Args:
        policy: trained in place; a head with log-probabilities. Weights that require
            no gradient stay as they are. An off-policy algorithm takes a policy of any
            kind, which it may keep as it is and act around.
        space: that the policy was trained in; None = it reads and writes robot space
            by itself, as ``LeRobotFlowPolicy`` does.
        env: where it learns; batched, with episode seeds.
        folder: receives ``log.csv``, ``evaluations/``, ``training_state.pt`` (all
            weights, frozen ones too), ``comparison.json`` and ``policy/``.
        settings: the defaults of :class:`FinetuneSettings`.

    Keyword Args:
        critic: trained beside the policy by an algorithm that needs one. Reads what
            the policy would: observations in its space. Writes ``state_value`` float
            ``[*B, 1]``. None = the policy makes one, as a tiny policy does.
        eval_env: where the policy is evaluated; None = in ``env``.
        demonstrations: cloned beside the reinforcement learning, with ``bc_coeff``; or
            mixed into the batches of an off-policy algorithm.
        collector: a TorchRL collector of several processes or machines over
            environments of :func:`make_decision_env`, which then decide how much is
            executed, what is rewarded and how many decisions a batch has; None =
            collect in this process.
        profiler: records where the time of each iteration goes; changes no weight.
            None = no cost.
        tensorboard: True = also write event files (extra ``tensorboard``).
        progress: True = show progress bars.

    Raises:
        ArgumentTypeError: an argument is of another kind, such as a gymnasium
            environment or the path of a dataset.
        TypeError: the policy has no log-probabilities.
        SettingsError: settings contradict each other, the policy or the environment;
            the space is not the policy's; a critic is missing or not needed.
        FileExistsError: the folder holds something else than a fine-tuning.
        ResumeError: the folder was begun with other settings or another policy.
        RuntimeError: a loss is not finite; names the iteration.
        SettingsError: ranks differ in settings, weights or versions, or have a
            collector.
        NoTrainingError: the first step leaves parameters out that require a gradient,
            or changes no weight; names them.
    """
    settings = FinetuneSettings() if settings is None else settings
    check_module("finetune", policy)
    for where in (env, env if eval_env is None else eval_env):
        check_environment("finetune", where)
    if demonstrations is not None:
        check_demonstrations("finetune", demonstrations)
    policy = as_policy(policy)
    check_device("finetune", policy, env)
    is_off_policy = isinstance(settings.algorithm, OffPolicy)
    check_finetunable(policy, space, env, needs_likelihood=not is_off_policy)
    folder = Path(folder)
    check_training_folder("finetune", folder, _OWN_NAMES)
    (folder / "evaluations").mkdir(parents=True, exist_ok=True)
    policy.eval()  # dropout would make every ratio differ from 1
    sections, given = Sections(profiler), policy
    learner: Learner | OffPolicyLearner
    if is_off_policy:
        check_off_policy(settings, critic, collector)
        learner = OffPolicyLearner(
            policy, space, settings, demonstrations, env, folder, sections
        )
        policy = learner.policy.eval()
    else:
        stochastic = cast(StochasticVLAWrapper, policy)
        learner = Learner(
            stochastic, space, settings, demonstrations, critic, env, sections
        )
    initial_weights = hash_weights(policy)
    ranks = learner.ranks
    _check_ranks(learner, collector)
    ranks.check_shared("finetune", folder)
    state = TrainingState(folder, learner.parts, settings.as_values(), initial_weights)
    done = _resume(state, settings)
    learner.begin()
    columns = _OFF_POLICY_COLUMNS if is_off_policy else _COLUMNS
    log = RunLog(folder, columns, tensorboard=tensorboard and ranks.is_first)
    ranks.wait()
    numbers = ranks.collect(log.keep_until(done) if ranks.is_first else [])[0]
    rollouts = _open_rollouts(policy, space, env, settings, collector)
    where = env if eval_env is None else eval_env
    before, evaluations = (
        TrainingEvaluations(folder, acting, executor, where, settings, done)
        for acting in (given, policy)
        for executor in [make_executor(acting, space, settings.replan_interval)]
    )
    # Worker processes that nobody stops would keep a failed training from ending.
    device = next(policy.parameters()).device
    with closing(rollouts), closing(log), sections.running(device):
        first = before.run(0)
        iterations = _iterate(learner, rollouts, evaluations, done, sections)
        progress = progress and ranks.is_first
        for row in _show_progress(iterations, settings.iterations, done, progress):
            numbers.append(row)
            if ranks.is_first:
                log.append(row)
            if _write_state(state, int(row["iteration"]), settings):
                learner.commit()
    after = evaluations.run(settings.iterations)
    comparison = compare(after, first, names=("after", "before"))
    if ranks.is_first:
        save_finetuned(folder / "policy", policy, space, env)
        write_text(folder / "comparison.json", comparison.to_json())
    ranks.wait()
    return FinetuneResult(first, after, comparison, numbers)


def _check_ranks(learner: Learner | OffPolicyLearner, collector: Any | None) -> None:
    """Refuse ranks that would not train one policy."""
    ranks, caller = learner.ranks, "finetune"
    if ranks.is_alone:
        return
    if collector is not None:
        raise SettingsError(
            f"{caller}: expected no collector on {ranks.count} ranks, each of which "
            f"collects by itself, got {type(collector).__name__}. Leave it out, or "
            "start one process."
        )
    trained = [part for part in (learner.policy, learner.critic) if part is not None]
    check_agreement(
        caller,
        ranks,
        {"settings": learner.settings.as_values()},
        {"initial weights of policy and critic": trained},
    )


def _resume(state: TrainingState, settings: FinetuneSettings) -> int:
    """Restore the state, if there is one; return the iterations that are done."""
    done = state.read() or 0
    if done > settings.iterations:
        raise ResumeError(
            f"finetune: expected at most iterations={settings.iterations} in "
            f"{str(state.path.parent)!r}, got {done}. Pass as many or more, or another "
            "folder."
        )
    return done


def _write_state(
    state: TrainingState, iteration: int, settings: FinetuneSettings
) -> bool:
    """Write the state where it is due; return whether it was."""
    is_last = iteration == settings.iterations
    is_due = is_last or iteration % settings.checkpoint_interval == 0
    if is_due:
        state.write(iteration)
    return is_due


def _iterate(
    learner: Learner | OffPolicyLearner,
    rollouts: Rollouts | WorkerRollouts,
    evaluations: TrainingEvaluations,
    done: int,
    sections: Sections,
) -> Iterator[dict[str, float]]:
    """Yield the numbers of each iteration that is left."""
    settings, ranks = learner.settings, learner.ranks
    parts = [(learner.policy, "forward", "policy_call")]
    parts += [(env, "_step", "env_step") for env in rollouts.simulators]
    for iteration in range(done + 1, settings.iterations + 1):
        started = time.perf_counter()
        seed = iteration_seed(settings.seed, iteration)
        with (
            _own_random_numbers(rank_seed(seed, iteration, ranks)),
            sections.step(iteration),
        ):
            with sections.section("collect"), sections.calls(*parts):
                rollout = rollouts.collect(iteration)
            if not ranks.is_alone:
                rollout = ranks.gather(rollout)
                torch.manual_seed(seed)  # all ranks shuffle alike
            numbers = learner.learn(rollout, iteration)
            rollouts.sync()
        numbers["seconds"] = time.perf_counter() - started
        is_last = iteration == settings.iterations
        if is_last or iteration % settings.eval_interval == 0:
            result = evaluations.run(iteration)
            numbers["success"] = result.success_rate
            numbers["success_low"], numbers["success_high"] = result.interval
        yield {"iteration": iteration, **numbers}


def _show_progress(
    iterations: Iterator[dict[str, float]], total: int, done: int, progress: bool
) -> Iterator[dict[str, float]]:
    """Pass the numbers of the iterations on, with a progress bar."""
    shown: dict[str, str] = {}
    with tqdm(
        total=total, initial=done, desc="finetune", unit="it", disable=not progress
    ) as bar:
        for row in iterations:
            yield row
            shown["train"] = f"{100 * row['train_success']:.0f} %"
            if "success" in row:
                shown["success"] = f"{100 * row['success']:.0f} %"
            bar.set_postfix(shown)
            bar.update()


def _open_rollouts(
    policy: VLAWrapperBase,
    space: ModelSpace | None,
    env: EnvBase,
    settings: FinetuneSettings,
    collector: Any | None,
) -> Rollouts | WorkerRollouts:
    if collector is not None:
        return WorkerRollouts(
            collector,
            cast(StochasticVLAWrapper, policy),
            group_size=settings.algorithm.group_size,
            may_lag=settings.recompute,
        )
    num_envs, group_size = env.batch_size.numel(), settings.algorithm.group_size
    if num_envs % group_size:
        raise SettingsError(
            f"finetune: expected environments in whole groups of {group_size}, got "
            f"{num_envs} in {type(env).__name__}. Pass a multiple of the group size as "
            "its number of environments."
        )
    executed = interval_of(policy, settings.replan_interval) or policy.chunk_size
    decision_env = make_decision_env(
        env,
        space,
        chunk_size=policy.chunk_size,
        replan_interval=executed,
        seed=rank_seed(settings.seed, 0, Ranks.current()),
        group_size=group_size,
        reward=settings.reward,
    )
    num_decisions = settings.num_decisions or _decisions_of_episode(env, executed)
    return Rollouts(decision_env, policy, num_decisions)


def _decisions_of_episode(env: EnvBase, executed: int) -> int:
    """Return how many decisions the longest episode of an environment has."""
    max_steps = getattr(env, "max_steps", None)
    if max_steps is None:
        raise SettingsError(
            f"finetune: expected num_decisions, since {type(env).__name__} has no "
            "max_steps, got None. Set it to the decisions of a whole episode."
        )
    return -(-max_steps // executed)


@contextmanager
def _own_random_numbers(seed: int) -> Iterator[None]:
    """Use random numbers of a seed of the iteration's own, then the ones before."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
