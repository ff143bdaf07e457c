"""The main job: demonstrations, cloning, reinforcement learning, honest numbers."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase

from torchrl_vla.data import DemonstrationDataset, collect
from torchrl_vla.evaluation import (
    EvaluationResult,
    Recorder,
    blank_images,
    contact_sheet,
    evaluate,
    shuffle_instructions,
    write_png,
)
from torchrl_vla.policies import VLAWrapperBase
from torchrl_vla.recipes.behavior_cloning import train_behavior_cloning
from torchrl_vla.recipes.checkpoints import save_checkpoint
from torchrl_vla.recipes.demo.report import write_report
from torchrl_vla.recipes.environment_registry import ENVIRONMENTS
from torchrl_vla.recipes.finetuning.algorithms import PPO
from torchrl_vla.recipes.finetuning.finetune import FinetuneResult, finetune
from torchrl_vla.recipes.finetuning.finetune_settings import FinetuneSettings
from torchrl_vla.recipes.model_space import ModelSpace
from torchrl_vla.recipes.policy_factory import (
    Head,
    make_policy,
    make_space,
    to_stochastic,
)
from torchrl_vla.recipes.training_loop import TrainingLog
from torchrl_vla.schema import IMAGE_KEY

_MEANINGS = {
    "before": "the policy with its random initial weights.",
    "cloned": "the policy after cloning, before reinforcement learning.",
    "after": "the trained policy.",
    "shuffled instruction": (
        "the trained policy, told a random instruction in each episode. It falls to "
        "chance if, and only if, the policy listens."
    ),
    "blind": (
        "the trained policy, shown black images. It falls if the policy needs to look."
    ),
}
_AND_IMPROVED = ", which reinforcement learning then improved"


@dataclass(frozen=True)
class DemoSettings:
    """How large the demo is.

    Args:
        demonstrations: successful episodes to collect, as many of each instruction.
        noise: standard deviation of the noise on the expert's executed action.
        head: what the policy emits.
        chunk_size: actions per chunk.
        replan_interval: actions executed before the policy is asked again; None = all.
        hidden: width of the policy.
        steps: optimizer steps.
        batch_size: frames per step.
        lr: peak learning rate.
        episodes: episodes of the evaluation after training.
        control_episodes: episodes of every other evaluation.
        clips: episodes that are filmed.
        seed: of demonstrations and training; evaluations use ``seed + 1``.
        improve: how the clone is improved by reinforcement learning, its seed and
            episodes being those above; None = not at all.
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
    seed: int = 0
    improve: FinetuneSettings | None = None


#: What the command line runs for each environment it knows.
DEMO_SETTINGS: dict[str, DemoSettings] = {
    "tabletop": DemoSettings(
        demonstrations=240,  # 40 of each instruction
        noise=ENVIRONMENTS["tabletop"].noise,
        head="tokens",
        chunk_size=8,
        replan_interval=None,
        hidden=128,
        steps=2000,
        batch_size=64,
        lr=1e-3,
        episodes=500,
        control_episodes=300,
        clips=4,
        improve=FinetuneSettings(
            algorithm=PPO(gamma=0.95),
            iterations=45,
            lr=5e-4,
            eval_interval=15,
        ),
    ),
    "metaworld": DemoSettings(
        demonstrations=300,
        noise=ENVIRONMENTS["metaworld"].noise,
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
}


def run_demo(
    env: EnvBase,
    folder: Path | str,
    settings: DemoSettings,
    *,
    train_env: EnvBase | None = None,
    video_env: EnvBase | None = None,
    progress: bool = True,
) -> dict[str, EvaluationResult]:
    """Learn from a scripted expert, then from success; show how well in a folder.

    Args:
        env: with ``make_expert``, ``instructions``, ``metadata`` and episode seeds.
        folder: receives ``dataset/``, ``policy/``, ``learning_curve.csv``,
            ``finetuning/``, one JSON file per evaluation, clip strips and
            ``report.html``. A dataset and a fine-tuning already there are replaced.
        settings: sizes, rates and the seed.
        train_env: where reinforcement learning happens, in a larger batch; None = in
            ``env``.
        video_env: an environment with ``render()`` to clip the trained policy in; it
            gives the same episodes as ``env`` for the same seeds. None = no clip.
        progress: True = show progress bars.

    Returns:
        The evaluations by name: ``"before"``, with ``improve`` also ``"cloned"``, then
        ``"after"``, ``"shuffled instruction"`` and, where there are images,
        ``"blind"``.
    """
    started = time.perf_counter()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dataset = collect(
        env,
        env.make_expert(noise=settings.noise, seed=settings.seed),
        settings.demonstrations,
        folder=folder / "dataset",
        seed=settings.seed,
        balanced=True,
        overwrite=True,
        progress=progress,
    )
    torch.manual_seed(settings.seed)
    policy = make_policy(
        dataset,
        chunk_size=settings.chunk_size,
        head=settings.head,
        hidden=settings.hidden,
    ).eval()
    space = make_space(dataset.metadata, settings.head)
    actor = space.executor(policy, replan_interval=settings.replan_interval)

    def measure(what: TensorDictModuleBase, episodes: int) -> EvaluationResult:
        actor.reset()
        return evaluate(env, what, episodes, seed=settings.seed + 1, progress=progress)

    results = {"before": measure(actor, settings.control_episodes)}
    log = train_behavior_cloning(
        policy,
        dataset,
        space=space,
        steps=settings.steps,
        batch_size=settings.batch_size,
        lr=settings.lr,
        seed=settings.seed,
        progress=progress,
    )
    tuned = None
    if settings.improve is None:
        results["after"] = measure(actor, settings.episodes)
    else:
        policy = to_stochastic(policy)
        actor = space.executor(policy, replan_interval=settings.replan_interval)
        where = env if train_env is None else train_env
        tuned = _improve(policy, space, where, env, folder, settings, progress)
        results["cloned"], results["after"] = tuned.before, tuned.after
    save_checkpoint(folder / "policy", policy, space)
    results["shuffled instruction"] = measure(
        shuffle_instructions(actor, env.instructions), settings.control_episodes
    )
    if dataset.frames.get(IMAGE_KEY, None) is not None:
        results["blind"] = measure(blank_images(actor), settings.control_episodes)
    strips = {}
    if video_env is not None and settings.clips:
        actor.reset()
        strips = _film(video_env, actor, folder, settings)
    minutes = (time.perf_counter() - started) / 60
    _write(folder, settings, dataset, log, results, strips, minutes, tuned)
    return results


def _improve(
    policy: VLAWrapperBase,
    space: ModelSpace,
    env: EnvBase,
    eval_env: EnvBase,
    folder: Path,
    settings: DemoSettings,
    progress: bool,
) -> FinetuneResult:
    """Train the policy in place by reinforcement learning."""
    shutil.rmtree(folder / "finetuning", ignore_errors=True)
    improve = replace(
        settings.improve,
        replan_interval=settings.replan_interval,
        eval_episodes=settings.episodes,
        seed=settings.seed,
    )
    return finetune(
        policy,
        space,
        env,
        folder / "finetuning",
        improve,
        eval_env=eval_env,
        progress=progress,
    )


def _film(
    env: EnvBase, actor: TensorDictModuleBase, folder: Path, settings: DemoSettings
) -> dict[str, Path]:
    """Film the first episodes of the evaluation; return caption to PNG."""
    recorder = Recorder(settings.clips)
    result = evaluate(
        env,
        actor,
        settings.clips,
        seed=settings.seed + 1,
        recorder=recorder,
        progress=False,
    )
    strips = {}
    for clip, episode in zip(recorder.clips, result.episodes):
        outcome = "success" if episode.success else "failure"
        caption = f"{episode.instruction}: {outcome} after {episode.length} steps"
        words = re.sub(r"\W+", "_", episode.instruction)
        path = folder / f"film_{episode.seed}_{words}.png"
        strips[caption] = write_png(path, contact_sheet([clip]))
    return strips


def _write(
    folder: Path,
    settings: DemoSettings,
    dataset: DemonstrationDataset,
    log: TrainingLog,
    results: Mapping[str, EvaluationResult],
    strips: Mapping[str, Path],
    minutes: float,
    tuned: FinetuneResult | None,
) -> None:
    log.to_csv(folder / "learning_curve.csv")
    for name, result in results.items():
        (folder / f"{name.replace(' ', '_')}.json").write_text(result.to_json())
    write_report(
        folder / "report.html",
        title=f"{dataset.metadata.dataset_id}: from demonstrations to a policy",
        summary=(
            f"{dataset.num_episodes} demonstrations of a scripted expert "
            f"({len(dataset)} frames) were cloned into one policy that is told in "
            f"words what to do{'' if tuned is None else _AND_IMPROVED}. Everything "
            f"took {minutes:.1f} minutes."
        ),
        results=results,
        meanings={name: _MEANINGS[name] for name in results},
        losses=log.losses,
        strips=strips,
        improvement=_successes(tuned),
        verdict="" if tuned is None else tuned.comparison.verdict,
        facts={
            **{name: str(value) for name, value in vars(settings).items()},
            "seed of the evaluations": str(settings.seed + 1),
            "minutes of training": f"{log.seconds / 60:.1f}",
            "threads": str(torch.get_num_threads()),
            "torch": torch.__version__,
        },
    )


def _successes(tuned: FinetuneResult | None) -> list[tuple[int, float]]:
    """Return (iteration, success rate) of every evaluation of the fine-tuning."""
    if tuned is None:
        return []
    judged = [row for row in tuned.log if row.get("success") is not None]
    return [(0, tuned.before.success_rate)] + [
        (int(row["iteration"]), row["success"]) for row in judged
    ]
