"""Settings of the demo, by environment."""

from __future__ import annotations

from dataclasses import dataclass

from torchrl_vla._internal.option_names import Head
from torchrl_vla.envs.known_environments import ENVIRONMENTS
from torchrl_vla.recipes.finetuning.algorithms import PPO
from torchrl_vla.recipes.finetuning.finetune_settings import FinetuneSettings


@dataclass(frozen=True)
class DemoSettings:
    """Sizes of the demo.

    Args:
        demonstrations: successful episodes to collect, as many of each instruction.
        noise: standard deviation of the noise on the expert's executed action.
        head: what the policy emits.
        chunk_size: actions per chunk.
        replan_interval: actions of a chunk to execute; None = all.
        hidden: width of the policy.
        steps: optimizer steps.
        batch_size: frames per step.
        lr: peak learning rate.
        episodes: episodes of the evaluation after training.
        control_episodes: episodes of every other evaluation.
        clips: episodes of which the report shows a clip.
        image_size: side of the images in pixels; None = the environment's own.
        image_interval: frames of a demonstration from one image to the next.
        num_envs: environments that run side by side, at most.
        seed: of demonstrations, training and evaluations, whose episodes differ.
        improve: settings of the reinforcement learning after cloning, with the seed and
            the episodes above; None = only clone.
    """

    demonstrations: int
    noise: float
    head: Head
    chunk_size: int
    replan_interval: int | None
    hidden: int
    steps: int
    batch_size: int
    lr: float
    episodes: int
    control_episodes: int
    clips: int
    image_size: int | None = None
    image_interval: int = 1
    num_envs: int = 1024
    seed: int = 0
    improve: FinetuneSettings | None = None


def _expert_noise(name: str) -> float:
    noise = ENVIRONMENTS[name].noise
    assert noise is not None, f"{name} has no expert"
    return noise


#: What the command line runs for each environment it knows.
DEMO_SETTINGS: dict[str, DemoSettings] = {
    "tabletop": DemoSettings(
        demonstrations=960,  # 160 of each instruction: every colour beside every other
        noise=_expert_noise("tabletop"),
        head="tokens",
        chunk_size=8,
        replan_interval=None,
        hidden=128,
        steps=1600,
        batch_size=64,
        lr=1e-3,
        episodes=500,
        control_episodes=300,
        clips=4,
        image_size=32,  # in which reinforcement learning takes minutes
        improve=FinetuneSettings(
            algorithm=PPO(gamma=0.95),
            iterations=30,
            lr=5e-4,
            lr_decay=True,
            eval_interval=15,
        ),
    ),
    "metaworld": DemoSettings(
        demonstrations=300,
        noise=_expert_noise("metaworld"),
        head="regression",
        chunk_size=8,
        replan_interval=None,
        hidden=256,
        steps=4000,
        batch_size=256,
        lr=1e-3,
        episodes=120,
        control_episodes=60,
        clips=6,
    ),
    "libero": DemoSettings(
        demonstrations=200,
        noise=_expert_noise("libero"),
        head="regression",
        chunk_size=16,
        replan_interval=8,
        hidden=256,
        steps=4000,
        batch_size=64,
        lr=1e-3,
        episodes=100,
        control_episodes=20,
        clips=2,
        image_size=64,
        image_interval=4,
        num_envs=1,  # each process holds a simulation of every task, 1 GB each
    ),
}
