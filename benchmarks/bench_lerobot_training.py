"""Train LeRobot's ACT through LeRobotLoss, and our TinyVLA, at the same budget.

    OMP_NUM_THREADS=1 python benchmarks/bench_lerobot_training.py

Both see the same demonstrations, batches and order of batches for as many steps, and
are judged on the same episodes, which training never saw. Both execute whole chunks
and end with the average of their weights. ACT reads no text, so every task has one
instruction. It is narrow, its ResNet starts from random weights, and its learning rate
is not LeRobot's 1e-5, which is meant for a pretrained backbone and 100,000 steps. In
MetaWorld there are no images: ACT then wants an environment state, and is shown the
same numbers under that name.

Needs the extras ``lerobot`` and ``metaworld``.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from typing import Any

import torch
from contest import read_quick, record_ratios
from tensordict import TensorDictBase
from torchrl.envs import Compose, EnvBase, Transform, TransformedEnv

from torchrl_vla.data import DemonstrationDataset, collect
from torchrl_vla.envs import MetaWorldEnv, TabletopEnv
from torchrl_vla.evaluation import EvaluationResult, evaluate
from torchrl_vla.execution import MultiStepActorWrapper
from torchrl_vla.recipes import (
    TrainingLog,
    TrainingSettings,
    fit_lerobot_policy,
    make_policy,
    train_behavior_cloning,
    train_lerobot,
)
from torchrl_vla.schema import ENVIRONMENT_STATE_KEY, STATE_KEY, MissingExtraError
from torchrl_vla.spaces import ModelSpace

CHUNK = 8
ACT: dict[str, Any] = {
    "chunk_size": CHUNK,
    "n_action_steps": CHUNK,
    "n_heads": 4,
    "n_encoder_layers": 2,
    "n_vae_encoder_layers": 1,
    "latent_dim": 8,
    "pretrained_backbone_weights": None,
}


@dataclass(frozen=True)
class Budget:
    """What both policies get.

    Args:
        demonstrations: episodes of the expert.
        noise: of the expert's executed action.
        steps: optimizer steps.
        batch_size: frames per step.
        act_lr: ACT's peak learning rate.
        act_width: ACT's ``dim_model``; its feed-forward layers are four times as wide.
        tiny_lr: TinyVLA's.
        episodes: of the evaluation.
    """

    demonstrations: int
    noise: float
    steps: int
    batch_size: int
    act_lr: float
    act_width: int
    tiny_lr: float
    episodes: int


TABLETOP = Budget(600, 0.3, 2500, 32, 3e-4, 64, 2e-3, 300)
METAWORLD = Budget(60, 0.1, 3000, 64, 3e-4, 128, 1e-3, 300)


class StateTwice(Transform):
    """Show the state also as the environment's, for a policy that has to have one."""

    def __init__(self) -> None:
        super().__init__(in_keys=[STATE_KEY], out_keys=[ENVIRONMENT_STATE_KEY])

    def _apply_transform(self, state: torch.Tensor) -> torch.Tensor:
        return state.clone()

    def _reset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        return self._call(tensordict_reset)

    def transform_observation_spec(self, observation_spec: Any) -> Any:
        """Add the environment state."""
        observation_spec[ENVIRONMENT_STATE_KEY] = observation_spec[STATE_KEY].clone()
        return observation_spec


def train_act(
    dataset: DemonstrationDataset, budget: Budget
) -> tuple[MultiStepActorWrapper, TrainingLog]:
    width = budget.act_width
    sizes = {"dim_model": width, "dim_feedforward": 4 * width}
    policy = fit_lerobot_policy("act", dataset, config={**ACT, **sizes})
    log = train_lerobot(
        policy,
        dataset,
        TrainingSettings(
            steps=budget.steps,
            batch_size=budget.batch_size,
            lr=budget.act_lr,
            ema_decay=0.99,
        ),
        progress=False,
    )
    return MultiStepActorWrapper(policy, replan_interval=policy.n_action_steps), log


def train_tiny(
    dataset: DemonstrationDataset, budget: Budget
) -> tuple[MultiStepActorWrapper, TrainingLog]:
    policy = make_policy(dataset, chunk_size=CHUNK, hidden=256)
    space = ModelSpace(dataset.metadata)
    log = train_behavior_cloning(
        policy,
        dataset,
        TrainingSettings(
            steps=budget.steps, batch_size=budget.batch_size, lr=budget.tiny_lr
        ),
        space=space,
        progress=False,
    )
    return space.executor(policy), log


CONTESTANTS = {"TinyVLA": train_tiny, "ACT": train_act}


def compare(title: str, env: EnvBase, budget: Budget) -> None:
    rates = {}
    with tempfile.TemporaryDirectory() as folder:
        dataset = collect(
            env,
            env.make_expert(noise=budget.noise, seed=0),
            budget.demonstrations,
            folder=f"{folder}/dataset",
            seed=0,
            progress=False,
        )
        for name, train in CONTESTANTS.items():
            torch.manual_seed(0)
            actor, log = train(dataset, budget)
            result = evaluate(env, actor, budget.episodes, seed=1, progress=False)
            rates[name] = result.success_rate
            print(row(title, name, budget, log, result), flush=True)
    points = 100 * (rates["ACT"] - rates["TinyVLA"])
    if rates["TinyVLA"]:
        record_ratios(f"{title}: success", [rates["ACT"] / rates["TinyVLA"]], "TinyVLA")
    print(f"{title:<20}ACT - TinyVLA: {points:+.1f} points (aim: -5 or better)")
    env.close()


def row(
    title: str, name: str, budget: Budget, log: TrainingLog, result: EvaluationResult
) -> str:
    low, high = (100 * bound for bound in result.interval)
    minutes, rate = log.seconds / 60, 100 * result.success_rate
    return (
        f"{title:<20}{name:<9}{budget.demonstrations:>6}{budget.steps:>7}"
        f"{budget.batch_size:>7}{minutes:>9.1f}{len(result):>10}"
        f"{rate:>9.1f}{low:>7.1f}{high:>7.1f}"
    )


def main() -> None:
    quick = read_quick(__doc__)
    torch.set_num_threads(1)
    print("ACT through LeRobotLoss and TinyVLA, 1 thread; same data, batches and steps")
    print(
        f"{'':<29}{'demos':>6}{'steps':>7}{'batch':>7}{'minutes':>9}{'episodes':>10}"
        f"{'success':>9}{'95 % interval':>14}"
    )
    tiny = {"demonstrations": 2, "steps": 2, "batch_size": 4, "episodes": 2}
    tabletop, metaworld = TABLETOP, METAWORLD
    if quick:
        tabletop, metaworld = replace(tabletop, **tiny), replace(metaworld, **tiny)
    env = TabletopEnv(min(32, tabletop.episodes), colors=("red",), image_size=32)
    compare("tabletop, images", env, tabletop)
    for task in ("reach", "door-open"):
        try:
            env = MetaWorldEnv(task, num_envs=min(16, metaworld.episodes), seed=0)
        except MissingExtraError as error:
            print(f"{task}, state: NOT RUN: {error}")
            continue
        env = TransformedEnv(env, Compose(StateTwice()))
        compare(f"{task}, state", env, metaworld)


if __name__ == "__main__":
    main()
