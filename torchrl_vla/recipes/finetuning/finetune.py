"""Improve a cloned policy by reinforcement learning, one whole job."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase
from tqdm import tqdm

from torchrl_vla.evaluation import (
    Comparison,
    EvaluationResult,
    compare,
    evaluate,
    hash_weights,
)
from torchrl_vla.policies import StochasticVLAWrapper, as_policy
from torchrl_vla.recipes.finetuning.finetune_settings import (
    FinetuneSettings,
    SettingsError,
)
from torchrl_vla.recipes.finetuning.learner import Learner
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
from torchrl_vla.recipes.finetuning.training_state import ResumeError, TrainingState
from torchrl_vla.recipes.model_space import ModelSpace
from torchrl_vla.recipes.open_dataset import Demonstrations

_COLUMNS = (
    "iteration",
    "seconds",
    "env_steps",
    "decisions",
    "episodes",
    "train_success",
    "loss_objective",
    "loss_critic",
    "loss_entropy",
    "loss_reference_kl",
    "loss_bc",
    "clip_fraction",
    "kl_approx",
    "max_ratio",
    "entropy",
    "reference_kl",
    "explained_variance",
    "policy_update_fraction",
    "success",
    "success_low",
    "success_high",
)


@dataclass(frozen=True)
class FinetuneResult:
    """What came of it.

    Args:
        before: evaluation of the policy as it was given.
        after: of the trained policy, on the same seeds.
        comparison: the two, paired.
        log: one line of numbers per iteration.
    """

    before: EvaluationResult
    after: EvaluationResult
    comparison: Comparison
    log: list[dict[str, float]]


def finetune(
    policy: StochasticVLAWrapper,
    space: ModelSpace | None,
    env: EnvBase,
    folder: Path | str,
    settings: FinetuneSettings | None = None,
    *,
    critic: TensorDictModuleBase | None = None,
    eval_env: EnvBase | None = None,
    demonstrations: Demonstrations | None = None,
    collector: Any | None = None,
    tensorboard: bool = False,
    progress: bool = True,
) -> FinetuneResult:
    """Improve a policy by its own successes, and say by how much.

    Each iteration collects a batch of decisions with the current weights, judges them
    and takes optimizer steps on :class:`ChunkPPOLoss`. A folder that holds an
    unfinished training with the same settings is gone on with: in one process the
    weights become those of an uninterrupted training, bit for bit. The surprise: the
    policy samples while it learns and is evaluated without sampling.

    Args:
        policy: trained in place; a head with log-probabilities. Weights that require
            no gradient stay as they are.
        space: that the policy was trained in; None = it reads and writes robot space
            by itself, as ``LeRobotFlowPolicy`` does.
        env: where it learns; batched, with episode seeds.
        folder: receives ``log.csv``, ``evaluations/``, ``training_state.pt`` (all
            weights, frozen ones too), ``comparison.json`` and ``policy/``: what
            ``load_executor`` reads, for the tiny policies and ``LeRobotFlowPolicy``;
            for classes of your own ``weights.pt``, their ``state_dict``.
        settings: how; the defaults of :class:`FinetuneSettings`.

    Keyword Args:
        critic: trained beside the policy by an algorithm that needs one. Reads what
            the policy would: observations in its space. Writes ``state_value`` float
            ``[*B, 1]``. None = for a tiny policy a ``TinyCritic`` that begins with a
            copy of its backbone.
        eval_env: where it is judged; None = in ``env``.
        demonstrations: to clone beside, with ``bc_coeff``.
        collector: a TorchRL collector of several processes or machines over
            environments of :func:`make_decision_env`, which then decide how much is
            executed, what is rewarded and how many decisions a batch has; None =
            collect in this process.
        tensorboard: True = also write event files (extra ``tensorboard``).
        progress: True = show progress bars.

    Raises:
        TypeError: the policy has no log-probabilities.
        SettingsError: settings contradict each other, the policy or the environment;
            the space is not the policy's; a critic is missing or not needed.
        ResumeError: the folder was begun with other settings.
        RuntimeError: a loss is not finite; names the iteration.
    """
    settings = FinetuneSettings() if settings is None else settings
    policy = as_policy(policy)
    check_finetunable(policy, space, env)
    folder = Path(folder)
    (folder / "evaluations").mkdir(parents=True, exist_ok=True)
    policy.eval()  # dropout would make every ratio differ from 1
    learner = Learner(policy, space, settings, demonstrations, critic, env)
    state = TrainingState(folder, learner.parts, settings.as_values())
    done = state.read() or 0
    if done > settings.iterations:
        raise ResumeError(
            f"finetune: expected at most iterations={settings.iterations} in "
            f"{str(folder)!r}, got {done}. Pass as many or more, or another folder."
        )
    log = RunLog(folder, _COLUMNS, tensorboard=tensorboard)
    rows = log.keep_until(done)
    rollouts = _open_rollouts(policy, space, env, settings, collector)

    def judge(iteration: int) -> EvaluationResult:
        path = folder / "evaluations" / f"{iteration:05d}.json"
        # Before the first state, what lies there may be cut off, or of other weights.
        if 0 < done >= iteration and path.exists():
            return EvaluationResult.from_json(path)
        result = evaluate(
            env if eval_env is None else eval_env,
            make_executor(policy, space, settings.replan_interval),
            settings.eval_episodes,
            seed=(settings.seed + 1) % 1009,
            provenance={
                "policy": {"sha256": hash_weights(policy), "iteration": iteration}
            },
            progress=False,
        )
        path.write_text(result.to_json())
        return result

    bar = tqdm(
        total=settings.iterations,
        initial=done,
        desc="finetune",
        unit="it",
        disable=not progress,
    )
    # Worker processes that nobody stops would keep a failed training from ending.
    with closing(rollouts), closing(log), bar:
        latest = before = judge(0)
        for iteration in range(done + 1, settings.iterations + 1):
            started = time.perf_counter()
            with _own_random_numbers(settings.seed_of(iteration)):
                rollout = rollouts.collect(iteration)
                numbers = learner.learn(rollout, iteration)
            rollouts.sync()
            numbers["seconds"] = time.perf_counter() - started
            is_last = iteration == settings.iterations
            if is_last or iteration % settings.eval_interval == 0:
                latest = judge(iteration)
                low, high = latest.interval
                numbers["success"] = latest.success_rate
                numbers["success_low"], numbers["success_high"] = low, high
            rows.append({"iteration": iteration, **numbers})
            log.append(rows[-1])
            if is_last or iteration % settings.checkpoint_interval == 0:
                state.write(iteration)
            bar.set_postfix(
                train=f"{100 * numbers['train_success']:.0f} %",
                success=f"{100 * latest.success_rate:.0f} %",
            )
            bar.update()
    after = judge(settings.iterations)
    save_finetuned(folder / "policy", policy, space, env)
    comparison = compare(after, before, names=("after", "before"))
    (folder / "comparison.json").write_text(comparison.to_json())
    return FinetuneResult(before, after, comparison, rows)


def _open_rollouts(
    policy: StochasticVLAWrapper,
    space: ModelSpace | None,
    env: EnvBase,
    settings: FinetuneSettings,
    collector: Any | None,
) -> Rollouts | WorkerRollouts:
    if collector is not None:
        return WorkerRollouts(
            collector,
            policy,
            group_size=settings.algorithm.group_size,
            may_lag=settings.recompute,
        )
    executed = settings.replan_interval or policy.chunk_size
    num_decisions = settings.num_decisions
    if num_decisions is None:
        max_steps = getattr(env, "max_steps", None)
        if max_steps is None:
            raise SettingsError(
                "finetune: expected num_decisions, since "
                f"{type(env).__name__} has no max_steps, got None. Set it to the "
                "decisions of a whole episode."
            )
        num_decisions = -(-max_steps // executed)
    rows, group_size = env.batch_size.numel(), settings.algorithm.group_size
    if rows % group_size:
        raise SettingsError(
            f"finetune: expected rows in whole groups of {group_size}, got {rows} of "
            f"{type(env).__name__}. Give it a multiple of the group size."
        )
    decision_env = make_decision_env(
        env,
        space,
        chunk_size=policy.chunk_size,
        replan_interval=settings.replan_interval,
        seed=settings.seed,
        group_size=group_size,
        reward=settings.reward,
    )
    return Rollouts(decision_env, policy, num_decisions)


@contextmanager
def _own_random_numbers(seed: int) -> Iterator[None]:
    """Draw from a seed of the iteration's own, so that it depends on nothing before."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
