"""Collection of the decisions of a policy with TorchRL's collectors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import Collector
from torchrl.collectors.distributed import DistributedSyncCollector
from torchrl.envs import (
    Compose,
    EnvBase,
    ExplorationType,
    Transform,
    TransformedEnv,
)

from torchrl_vla._internal.option_names import Reward as Reward
from torchrl_vla.execution import MultiAction
from torchrl_vla.policies import StochasticVLAWrapper
from torchrl_vla.rollout import ScheduledEpisodes
from torchrl_vla.schema import (
    ACTION_CHUNK_KEY,
    ELEMENT_LOG_PROBS_KEY,
    EPISODE_SEED_KEY,
    IS_EXECUTED_KEY,
    SUCCESS_KEY,
    ExecutionError,
    MissingKeyError,
    check_robot_metadata,
    environment_metadata,
)
from torchrl_vla.spaces import ModelSpace
from torchrl_vla.transforms import ActionScaling, SuccessReward

_PROBES = 64  # decisions of a batch that are asked about again
_ROUNDING = 1e-3  # of a log-probability, on another machine; an update moves more


def make_decision_env(
    env: EnvBase,
    space: ModelSpace | None,
    *,
    chunk_size: int,
    replan_interval: int | None = None,
    seed: int = 0,
    group_size: int = 1,
    reward: Reward = "success",
) -> TransformedEnv:
    """Put an environment in a policy's space, where one step is one decision.

    What the policy reads and what it chose are then exactly what a loss computes
    from: nothing is converted on the way into the training.

    Args:
        env: batched, with episode seeds; in robot space.
        space: of the policy; None = it reads and writes robot space by itself, as
            ``LeRobotFlowPolicy`` does. There is no default, so that nobody forgets it.
        chunk_size: ``H`` of the policy.
        replan_interval: actions of a chunk to execute; None = all.
        seed: of the schedule of episodes.
        group_size: rows that begin their episodes alike.
        reward: ``"success"`` = 1 for the first decision of an episode that achieves
            the task, else 0: what an evaluation counts. ``"environment"`` = the sum of
            the environment's own over a decision. Many simulators pay for being close
            at every step, and end at success: then the best policy for their reward
            hovers and never succeeds.

    Raises:
        MissingKeyError: the environment writes no ``success``.
        ValueError: there is no such reward.
        IncompatibleMetadataError: the space is of another robot than the environment.
    """
    if reward not in get_args(Reward):
        raise ValueError(
            f"make_decision_env: expected a reward of {get_args(Reward)}, got "
            f"{reward!r}."
        )
    written = [
        *env.full_observation_spec.keys(True, True),
        *env.full_done_spec.keys(True, True),
    ]
    if reward == "success" and SUCCESS_KEY not in written:
        raise MissingKeyError(
            f"make_decision_env: expected {SUCCESS_KEY!r} bool [N, 1] of "
            f"{type(env).__name__}, got only {sorted(map(str, written))}. Let it write "
            "success, or train on its own reward with reward='environment'."
        )
    robot = environment_metadata(env)
    if space is not None and robot is not None:
        sides = ("the policy's space", "the environment")
        check_robot_metadata("make_decision_env", space.metadata, robot, sides=sides)
    scheduled = ScheduledEpisodes(env, seed=seed, group_size=group_size)
    # MultiAction comes first: what is scaled then is a whole chunk on its way in, and
    # on the way out the last state of a decision instead of that of every step.
    transforms: list[Transform] = [
        MultiAction(chunk_size, replan_interval=replan_interval)
    ]
    if reward == "success":
        transforms.append(SuccessReward())
    if space is not None:
        scaling = ActionScaling.from_metadata(
            space.metadata, space.mode, in_keys_inv=[ACTION_CHUNK_KEY]
        )
        transforms.append(scaling)
        if space.state_scaling is not None:
            transforms.append(space.state_scaling)
    compose = Compose(*transforms).to(env.device or "cpu")
    return TransformedEnv(scheduled, compose)


class Rollouts:
    """Collect one batch of outer steps per iteration, in this process.

    Every iteration begins with new episodes, which are a function of the schedule's
    seed and the iteration: with the weights, all that a batch depends on. Episodes
    that the batch cuts off are not continued in the next one.

    Args:
        env: of :func:`make_decision_env`.
        policy: writes ``action_chunk``; samples.
        num_decisions: outer steps per row and batch.
    """

    def __init__(
        self, env: TransformedEnv, policy: TensorDictModuleBase, num_decisions: int
    ) -> None:
        self.env = env
        self._schedule = _find_schedule(env)
        #: Environments that step in this process.
        self.simulators = [_innermost(env)]
        frames = env.batch_size.numel() * num_decisions
        self._collector = Collector(
            env,
            policy,
            frames_per_batch=frames,
            total_frames=-1,
            reset_at_each_iter=True,
            track_traj_ids=False,  # nobody here asks
            exploration_type=ExplorationType.RANDOM,
            auto_register_policy_transforms=False,  # the policy reads no is_init
        )
        self._batches: Iterator[TensorDictBase] = iter(self._collector)

    def collect(self, iteration: int) -> TensorDictBase:
        """Return outer steps ``[N, T]`` of the current weights."""
        self._schedule.begin(iteration)
        return next(self._batches)

    def sync(self) -> None:
        """Nothing to do: the collector asks the very policy that is trained."""

    def close(self) -> None:
        """Shut the collector down; the environment stays open."""
        self._collector.shutdown(close_env=False)


class WorkerRollouts:
    """Collect with a TorchRL collector of several processes or machines.

    For ``MultiSyncCollector``, ``DistributedCollector(sync=True)`` and
    ``RayCollector(sync=True)``. Give each worker an environment of
    :func:`make_decision_env` with a ``seed`` of its own. Episodes go on from batch to
    batch, so a resumed training is not bit-identical, and its workers begin their
    schedules of episodes again.

    Every batch is checked: some of its decisions are asked about again, and the
    weights that are trained must find them as likely as the worker did. Several of
    TorchRL's collectors lag, and none says so by itself.

    Args:
        collector: of outer steps; ours from here on, and shut down by ``close``.
        policy: the one that is trained; a head with log-probabilities.

    Keyword Args:
        group_size: episodes that are compared; from 2 on, workers may share theirs.
        may_lag: True = also take decisions of earlier weights, or of weights in
            another precision. For a learner that recomputes the log-probabilities.

    Raises:
        ExecutionError: the collector cannot be kept at the current weights.
    """

    def __init__(
        self,
        collector: Any,
        policy: StochasticVLAWrapper,
        *,
        group_size: int = 1,
        may_lag: bool = False,
    ) -> None:
        self._collector = collector
        self._policy = policy
        self._may_share = group_size > 1
        #: They step in other processes.
        self.simulators: list[EnvBase] = []
        self._may_lag = may_lag
        if isinstance(collector, DistributedSyncCollector):
            collector.shutdown(timeout=1)  # they would keep this process from ending
            raise ExecutionError(
                "WorkerRollouts: expected a collector whose workers wait for the "
                "weights, got DistributedSyncCollector, whose workers collect the next "
                "batch while this one is learned from. Use DistributedCollector("
                "sync=True) with the same arguments."
            )
        # A training that goes on has read its weights since the workers got theirs.
        self.sync()
        self._batches: Iterator[TensorDictBase] = iter(collector)

    def collect(self, iteration: int) -> TensorDictBase:
        """Return outer steps ``[*B, T]`` of the current weights.

        Raises:
            ExecutionError: the collector has ended; or its decisions are of other
                weights; or time is not the last dimension; or two workers play the
                same episodes.
            MissingKeyError: the environments are not of :func:`make_decision_env`.
        """
        batch = next(self._batches, None)
        if batch is None:
            raise ExecutionError(
                f"WorkerRollouts: expected a batch in iteration {iteration}, got the "
                f"end of {type(self._collector).__name__}. Give it a larger "
                "total_frames; only MultiSyncCollector takes -1 for no end."
            )
        _check_outer_steps(batch)
        if not self._may_share:
            _check_workers_differ(batch)
        if not self._may_lag:
            self._check_weights(batch, iteration)
        return batch

    def sync(self) -> None:
        """Send the current weights to the workers."""
        self._collector.update_policy_weights_(self._policy)

    def close(self) -> None:
        """Stop the workers."""
        self._collector.shutdown()

    def _check_weights(self, batch: TensorDictBase, iteration: int) -> None:
        flat = batch.reshape(-1)
        rows = torch.linspace(0, len(flat) - 1, _PROBES).long()
        probes = flat[rows]
        with torch.no_grad():
            found = self._policy.element_log_probs(probes)
        error = float((found - probes[ELEMENT_LOG_PROBS_KEY]).abs().max())
        if not error <= _ROUNDING:
            raise ExecutionError(
                "WorkerRollouts: expected decisions of the weights that are trained, "
                f"got log-probabilities that are off by up to {error:g} from "
                f"{type(self._collector).__name__} in iteration {iteration}. Use a "
                "collector whose workers wait (MultiSyncCollector, "
                "DistributedCollector or RayCollector with sync=True); or, if they "
                "may lag or act in another precision, FinetuneSettings("
                "recompute=True)."
            )


def _check_outer_steps(batch: TensorDictBase) -> None:
    """Refuse what is not one decision per position, in order along each row."""
    if batch.get(("next", IS_EXECUTED_KEY), None) is None:
        raise MissingKeyError(
            f"WorkerRollouts: expected ('next', {IS_EXECUTED_KEY!r}) of decisions, got "
            f"only {sorted(map(str, batch.keys(True, True)))}. Make the workers' "
            "environments with make_decision_env."
        )
    if batch.get(("collector", "mask"), None) is not None:
        raise ExecutionError(
            "WorkerRollouts: expected a decision at every position, got padding at "
            "('collector', 'mask'). Leave out the collector's split_trajs and "
            "preemptive_threshold."
        )
    trajectory = batch.get(("collector", "traj_ids"), None)
    if trajectory is None:
        return
    begins = trajectory[..., 1:] != trajectory[..., :-1]
    ended = batch["next", "done"].reshape(batch.batch_size)[..., :-1]
    if (begins & ~ended).any():
        raise ExecutionError(
            "WorkerRollouts: expected time in the last dimension, got episodes that "
            f"begin where none has ended in a batch {list(batch.batch_size)}: the "
            "rows of several workers one after the other. Give MultiSyncCollector "
            "cat_results='stack'."
        )


def _check_workers_differ(batch: TensorDictBase) -> None:
    if batch.ndim < 3:  # workers cannot be told apart
        return
    seeds = batch[EPISODE_SEED_KEY].flatten(1)
    different = seeds.unique(dim=0)
    if len(different) < len(seeds):
        raise ExecutionError(
            f"WorkerRollouts: expected {len(seeds)} workers with episodes of their "
            f"own, got {len(different)} that differ. Give make_decision_env another "
            "seed in each worker."
        )


def _innermost(env: EnvBase) -> EnvBase:
    """Return the environment below all transforms."""
    while isinstance(env, TransformedEnv):
        env = env.base_env
    return env


def _find_schedule(env: EnvBase) -> ScheduledEpisodes:
    inner = env
    while isinstance(inner, TransformedEnv):
        if isinstance(inner, ScheduledEpisodes):
            return inner
        inner = inner.base_env
    raise ExecutionError(
        "Rollouts: expected an environment of make_decision_env, got "
        f"{type(inner).__name__} without ScheduledEpisodes."
    )
