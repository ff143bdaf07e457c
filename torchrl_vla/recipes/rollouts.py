"""Collect the decisions of a policy with TorchRL's collectors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import Collector
from torchrl.envs import Compose, EnvBase, ExplorationType, TransformedEnv

from torchrl_vla.envs import ScheduledEpisodes
from torchrl_vla.execution import MultiAction
from torchrl_vla.recipes.model_space import ModelSpace
from torchrl_vla.schema import ACTION_CHUNK_KEY, ExecutionError
from torchrl_vla.transforms import ActionScaling


def make_decision_env(
    env: EnvBase,
    space: ModelSpace,
    *,
    chunk_size: int,
    n_executed: int | None = None,
    seed: int = 0,
    group_size: int = 1,
) -> TransformedEnv:
    """Put an environment in model space, where one step is one decision.

    What the policy reads and what it chose are then exactly what a loss computes
    from: nothing is converted on the way into the training.

    Args:
        env: batched, with episode seeds; in robot space.
        space: of the policy.
        chunk_size: ``H`` of the policy.
        n_executed: actions of a chunk to execute; None = all.
        seed: of the schedule of episodes.
        group_size: rows that begin their episodes alike.
    """
    scheduled = ScheduledEpisodes(env, seed=seed, group_size=group_size)
    # MultiAction comes first: what is scaled then is a whole chunk on its way in, and
    # on the way out the last state of a decision instead of that of every step.
    transforms = [
        MultiAction(chunk_size, n_executed=n_executed),
        ActionScaling.from_metadata(
            space.metadata, space.mode, in_keys_inv=[ACTION_CHUNK_KEY]
        ),
    ]
    if space.state_scaling is not None:
        transforms.append(space.state_scaling)
    return TransformedEnv(scheduled, Compose(*transforms))


class Rollouts:
    """Collect one batch of outer steps per iteration, in this process.

    Every iteration begins with new episodes, which are a function of the schedule's
    seed and the iteration: with the weights, all that a batch depends on. The
    surprise: episodes that the batch cuts off are not gone on with.

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
        frames = env.batch_size.numel() * num_decisions
        self._collector = Collector(
            env,
            policy,
            frames_per_batch=frames,
            total_frames=-1,
            reset_at_each_iter=True,
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

    Such as ``MultiSyncCollector``, ``DistributedSyncCollector`` or ``RayCollector``.
    Give each worker an environment of
    :func:`make_decision_env` with a ``seed`` of its own. Episodes go on from batch to
    batch, and what workers do between two updates depends on timing, so a resumed
    training is not bit-identical.

    Args:
        collector: yields batches ``[N, T]`` or ``[workers, N, T]`` of outer steps.
    """

    def __init__(self, collector: Any) -> None:
        self._collector = collector
        self._batches = iter(collector)

    def collect(self, iteration: int) -> TensorDictBase:
        """Return the next batch; rows and time are its last two dimensions."""
        return next(self._batches)

    def sync(self) -> None:
        """Send the current weights to the workers."""
        # DistributedSyncCollector has no such method: it sends them with each request.
        with suppress(NotImplementedError):
            self._collector.update_policy_weights_()

    def close(self) -> None:
        """Stop the workers."""
        self._collector.shutdown()


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
