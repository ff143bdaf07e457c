"""Count how often executors ask the policy when episodes end at random steps.

    OMP_NUM_THREADS=1 python benchmarks/bench_alignment.py

64 rows, chunks of 16 actions, and episodes whose lengths are drawn (geometric, so that
rows soon begin at different steps). Every row must first have executed the same
actions under every executor, the steps that it waited left out. Nothing is timed: the
counts follow from the seeds, and so do not depend on the machine. The ratios are those
of calls per environment step to the ideal 1 / H, seed by seed. "waited" is the share
of the steps of all rows on which the row waited for others; "useful" is the policy
calls for as many steps as one row-step per row, in units of the ideal.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch
from contest import read_quick, record_ratios
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import Compose, InitTracker, StepCounter, Transform, TransformedEnv
from torchrl.modules import MultiStepActorWrapper as PeerWrapper

from torchrl_vla.envs import ToyVLAEnv
from torchrl_vla.execution import MultiAction, MultiStepActorWrapper, SkipWaiting
from torchrl_vla.rollout import ScheduledEpisodes
from torchrl_vla.schema import InstructionTable

HORIZON, ACTION_DIM = 16, 2


class Actor(TensorDictModuleBase):
    """Count on by 0.01 from the action that the state echoes, and count the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.in_keys, self.out_keys = [("observation", "state")], ["action_chunk"]
        self.ahead = torch.arange(1.0, HORIZON + 1).unsqueeze(-1) / 100
        self.calls = 0

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the next ``HORIZON`` actions."""
        self.calls += 1
        last = tensordict["observation", "state"][..., None, :ACTION_DIM]
        return tensordict.set("action_chunk", last + self.ahead)


class CountedEnv(ToyVLAEnv):
    """The toy environment, with a record of what every row executed."""

    image_shape = (1, 1, 1)
    steps: list[tuple[Tensor, Tensor]]

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        stepped = tensordict.get("_step", None)
        if stepped is None:
            stepped = torch.ones(self.batch_size, dtype=torch.bool)
        action = tensordict["action"].clone()
        self.steps.append((stepped.reshape(self.batch_size), action))
        return super()._step(tensordict)


class EndBySeed(Transform):
    """End an episode after a number of steps that its seed stands for.

    Args:
        mean: of the geometric distribution.
    """

    def __init__(self, mean: int) -> None:
        super().__init__()
        chance = torch.rand(4096, generator=torch.Generator().manual_seed(0))
        ends = chance.log() / torch.tensor(1 - 1 / mean).log()
        self.lengths = ends.floor().long() + 1

    def _step(
        self, tensordict: TensorDictBase, next_tensordict: TensorDictBase
    ) -> TensorDictBase:
        length = self.lengths[next_tensordict["episode_seed"] % len(self.lengths)]
        over = next_tensordict["step_count"] >= length.unsqueeze(-1)
        for key in ("truncated", "done"):
            next_tensordict[key] = next_tensordict[key] | over
        return next_tensordict

    def _reset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        return tensordict_reset


@dataclass(frozen=True)
class Counts:
    """What came of one rollout.

    Args:
        calls: of the policy.
        steps: of the environment.
        waited: share of the rows' steps.
        executed: the actions of each row, in order, ``[n, A]``.
    """

    calls: int
    steps: int
    waited: float
    executed: list[Tensor]

    @property
    def calls_per_step(self) -> float:
        """Policy calls per step of the environment, in units of the ideal."""
        return self.calls / self.steps * HORIZON

    @property
    def calls_per_useful_step(self) -> float:
        """The same, per step that was not waited."""
        return self.calls_per_step / (1 - self.waited)


def play(name: str, rows: int, mean: int, steps: int, seed: int) -> Counts:
    """Step the environment for about ``steps`` steps under one executor."""
    base = CountedEnv(
        ACTION_DIM,
        ACTION_DIM,
        batch_size=[rows],
        instructions=InstructionTable(),
    )
    base.steps = []
    actor, ends = Actor(), [StepCounter(), EndBySeed(mean)]
    policy: TensorDictModuleBase
    if name == "MultiAction":
        transforms, policy, steps = [*ends, MultiAction(HORIZON)], actor, steps // 16
    elif name == "TorchRL":
        transforms, policy = [InitTracker(), *ends], PeerWrapper(actor, n_steps=HORIZON)
    else:
        transforms = [InitTracker(), *ends, SkipWaiting()]
        policy = MultiStepActorWrapper(actor, HORIZON, align=name == "align=True")
    env = TransformedEnv(ScheduledEpisodes(base, seed=seed), Compose(*transforms))
    with torch.no_grad():
        env.rollout(steps, policy, break_when_any_done=False)
    stepped = torch.stack([stepped for stepped, _ in base.steps])
    actions = torch.stack([action for _, action in base.steps])
    executed = [actions[stepped[:, row], row] for row in range(rows)]
    waited = 1 - stepped.float().mean().item()
    return Counts(actor.calls, len(base.steps), waited, executed)


def check_equal_rows(title: str, played: dict[str, Counts]) -> None:
    """Refuse executors under which a row executed other actions, as far as both got."""
    (first, expected), *others = played.items()
    for name, counts in others:
        for ours, theirs in zip(expected.executed, counts.executed):
            size = min(len(ours), len(theirs))
            if not size or not torch.equal(ours[:size], theirs[:size]):
                raise AssertionError(f"{title}: {name} and {first} disagree.")


def main() -> None:
    quick = read_quick(__doc__)
    torch.set_num_threads(1)
    rows, steps, seeds = (4, 64, 2) if quick else (64, 640, 5)
    print(f"chunks of {HORIZON}, {rows} rows, {steps} steps, {seeds} seeds, 1 thread")
    print(f"{'':<40}{'calls/step':>11}{'useful':>8}{'waited':>8}   ", end="")
    print("calls / ideal: min median max")
    names = ("align=True", "align=False", "TorchRL", "MultiAction")
    for mean in (20,) if quick else (20, 100, 500):
        played = [
            {name: play(name, rows, mean, steps, seed) for name in names}
            for seed in range(seeds)
        ]
        for counts in played:
            check_equal_rows(f"episodes of {mean}", counts)
        for name in names:
            report(f"episodes of {mean} steps, {name}", [p[name] for p in played])


def report(title: str, played: list[Counts]) -> None:
    ratios = [counts.calls_per_step for counts in played]
    record_ratios(title, ratios, "ideal calls")
    useful = statistics.median(counts.calls_per_useful_step for counts in played)
    waited = statistics.median(counts.waited for counts in played)
    calls = statistics.median(ratios) / HORIZON
    print(
        f"{title:<40}{calls:>11.4f}{useful:>8.2f}{100 * waited:>6.1f} %   "
        f"{min(ratios):6.2f} {statistics.median(ratios):6.2f} {max(ratios):6.2f}"
    )


if __name__ == "__main__":
    main()
