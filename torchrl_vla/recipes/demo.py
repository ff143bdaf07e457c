"""The main job: demonstrations, cloning, evaluation before and after, controls."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase

from torchrl_vla.data import DemonstrationDataset, collect
from torchrl_vla.evaluation import EvaluationResult, evaluate, write_film_strip
from torchrl_vla.evaluation.controls import blank_images, shuffle_instructions
from torchrl_vla.recipes.actors import make_policy, save_actor
from torchrl_vla.recipes.behavior_cloning import (
    TrainingLog,
    make_actor,
    train_behavior_cloning,
)
from torchrl_vla.recipes.report import write_report

_EXPLANATIONS = {
    "before": "the untrained policy",
    "after": "the trained policy",
    "shuffled instruction": (
        "the trained policy, told a random instruction: it falls to chance if, and "
        "only if, the policy listens"
    ),
    "blind": "the trained policy with black images: it falls if the policy looks",
}


@dataclass(frozen=True)
class DemoSettings:
    """How large the demo is; the command line fills in the environment's defaults.

    Args:
        demonstrations: successful episodes to collect.
        noise: standard deviation of the noise on the expert's executed action.
        chunk_size: actions per chunk.
        replan_interval: actions executed before the policy is asked again.
        hidden: width of the policy.
        steps: optimizer steps.
        batch_size: frames per step.
        lr: peak learning rate.
        episodes: episodes of the evaluation after training.
        control_episodes: episodes of every other evaluation.
        seed: of everything; evaluations use ``seed + 1``.
    """

    demonstrations: int
    noise: float
    chunk_size: int
    replan_interval: int | None
    hidden: int
    steps: int
    batch_size: int
    lr: float
    episodes: int
    control_episodes: int
    seed: int = 0


def run_demo(
    make_env: Callable[[int], EnvBase], folder: Path, settings: DemoSettings
) -> dict[str, EvaluationResult]:
    """Learn from a scripted expert, and write a folder that shows how well.

    Args:
        make_env: seed to environment; it must have ``make_expert``, ``instructions``
            and ``metadata``.
        folder: receives ``dataset/``, ``policy/``, ``learning_curve.csv``, one JSON
            per evaluation, film strips and ``report.html``.
        settings: sizes, rates and the seed.

    Returns:
        The evaluations by name: ``before``, ``after``, ``shuffled instruction`` and,
        where there are images, ``blind``.
    """
    started = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    env = make_env(settings.seed)
    expert = env.make_expert(noise=settings.noise, seed=settings.seed)
    dataset = collect(
        env,
        expert,
        settings.demonstrations,
        folder=folder / "dataset",
        seed=settings.seed,
        overwrite=True,
    )
    policy = make_policy(
        dataset, chunk_size=settings.chunk_size, hidden=settings.hidden
    )
    judge = make_env(settings.seed + 1)

    def act() -> TensorDictModuleBase:
        return make_actor(
            policy, dataset.metadata, replan_interval=settings.replan_interval
        )

    def measure(actor: TensorDictModuleBase, episodes: int) -> EvaluationResult:
        return evaluate(judge, actor, episodes, seed=settings.seed + 1)

    results = {"before": measure(act(), settings.control_episodes)}
    log = train_behavior_cloning(
        policy,
        dataset,
        steps=settings.steps,
        batch_size=settings.batch_size,
        lr=settings.lr,
        seed=settings.seed,
    )
    save_actor(folder / "policy", policy, dataset.metadata)
    log.to_csv(folder / "learning_curve.csv")
    results["after"] = measure(act(), settings.episodes)
    results["shuffled instruction"] = measure(
        shuffle_instructions(act(), env.instructions), settings.control_episodes
    )
    if has_images(dataset):
        results["blind"] = measure(blank_images(act()), settings.control_episodes)
    _write(folder, settings, dataset, log, results, judge, act(), started)
    return results


def has_images(dataset: DemonstrationDataset) -> bool:
    """Whether the demonstrations come with camera images."""
    return dataset.frames.get(("observation", "image"), None) is not None


def _write(
    folder: Path,
    settings: DemoSettings,
    dataset: DemonstrationDataset,
    log: TrainingLog,
    results: dict[str, EvaluationResult],
    judge: EnvBase,
    actor: TensorDictModuleBase,
    started: float,
) -> None:
    for name, result in results.items():
        (folder / f"{name.replace(' ', '_')}.json").write_text(result.to_json())
    minutes = (time.perf_counter() - started) / 60
    write_report(
        folder / "report.html",
        title=f"{dataset.metadata.dataset_id}: from demonstrations to a policy",
        summary=(
            f"{dataset.num_episodes} demonstrations of a scripted expert, cloned into "
            "one policy that sees, listens and feels where it is."
        ),
        results=results,
        explanations={name: _EXPLANATIONS[name] for name in results},
        losses=log.losses,
        strips={},
        facts={
            "demonstrations": f"{dataset.num_episodes} episodes, {len(dataset)} frames",
            "policy": f"{settings.hidden} wide, chunks of {settings.chunk_size}",
            "training": f"{settings.steps} steps of {settings.batch_size} frames, "
            f"seed {settings.seed}",
            "evaluation": f"seed {settings.seed + 1}",
            "time": f"{minutes:.1f} minutes on {torch.get_num_threads()} threads",
            "torch": torch.__version__,
        },
    )
