"""Demo of the whole path: demonstrations, cloning, reinforcement learning, report."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase

from torchrl_vla._internal.durable_files import write_text
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
from torchrl_vla.recipes.demo.demo_settings import DemoSettings
from torchrl_vla.recipes.demo.report import write_report
from torchrl_vla.recipes.finetuning.finetune import FinetuneResult, finetune
from torchrl_vla.recipes.policy_factory import (
    make_policy,
    make_space,
    to_stochastic,
)
from torchrl_vla.recipes.training_loop import TrainingLog
from torchrl_vla.recipes.training_settings import TrainingSettings
from torchrl_vla.schema import IMAGE_KEY
from torchrl_vla.spaces import ModelSpace

_MEANINGS = {
    "before": "the policy with its random initial weights.",
    "cloned": "the policy after cloning, before reinforcement learning.",
    "after": "the trained policy.",
    "shuffled instruction": (
        "the trained policy with a random instruction in each episode. Its success "
        "falls to chance if, and only if, the policy uses the instruction."
    ),
    "blind": (
        "the trained policy with black images. Its success falls if the policy uses "
        "the images."
    ),
}
_AND_IMPROVED = ", which reinforcement learning then improved"


def run_demo(
    env: EnvBase,
    folder: Path | str,
    settings: DemoSettings,
    *,
    train_env: EnvBase | None = None,
    video_env: EnvBase | None = None,
    progress: bool = True,
) -> dict[str, EvaluationResult]:
    """Clone a scripted expert, improve the clone, and write a report to a folder.

    Args:
        env: with ``make_expert``, ``instructions``, ``metadata`` and episode seeds. The
            policy acts and learns on its device.
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
    dataset = _collect(env, folder, settings, progress)
    torch.manual_seed(settings.seed)
    policy = make_policy(
        dataset,
        chunk_size=settings.chunk_size,
        head=settings.head,
        hidden=settings.hidden,
    ).eval()
    policy = policy.to(env.device or "cpu")
    space = make_space(dataset.metadata, settings.head)
    executor = space.executor(policy, replan_interval=settings.replan_interval)

    def measure(what: TensorDictModuleBase, episodes: int) -> EvaluationResult:
        executor.reset()
        return evaluate(env, what, episodes, seed=settings.seed, progress=progress)

    results = {"before": measure(executor, settings.control_episodes)}
    log = _clone(policy, dataset, space, settings, progress)
    tuned = None
    if settings.improve is None:
        results["after"] = measure(executor, settings.episodes)
    else:
        policy = to_stochastic(policy)
        executor = space.executor(policy, replan_interval=settings.replan_interval)
        where = env if train_env is None else train_env
        tuned = _improve(policy, space, where, env, folder, settings, progress)
        results["cloned"], results["after"] = tuned.before, tuned.after
    save_checkpoint(folder / "policy", policy, space)
    for name, ablation in _ablations(executor, env, dataset).items():
        results[name] = measure(ablation, settings.control_episodes)
    strips = {}
    if video_env is not None and settings.clips:
        executor.reset()
        strips = _write_clips(video_env, executor, folder, settings)
    minutes = (time.perf_counter() - started) / 60
    _write(folder, settings, dataset, log, results, strips, minutes, tuned)
    return results


def _collect(
    env: EnvBase, folder: Path, settings: DemoSettings, progress: bool
) -> DemonstrationDataset:
    return collect(
        env,
        env.make_expert(noise=settings.noise, seed=settings.seed),
        settings.demonstrations,
        folder=folder / "dataset",
        seed=settings.seed,
        balanced=True,
        image_interval=settings.image_interval,
        overwrite=True,
        progress=progress,
    )


def _clone(
    policy: TensorDictModuleBase,
    dataset: DemonstrationDataset,
    space: ModelSpace,
    settings: DemoSettings,
    progress: bool,
) -> TrainingLog:
    training = TrainingSettings(
        steps=settings.steps,
        batch_size=settings.batch_size,
        lr=settings.lr,
        seed=settings.seed,
    )
    return train_behavior_cloning(
        policy, dataset, training, space=space, progress=progress
    )


def _ablations(
    executor: TensorDictModuleBase, env: EnvBase, dataset: DemonstrationDataset
) -> dict[str, TensorDictModuleBase]:
    """Return the trained policy without an input, by the name in the report."""
    ablations = {
        "shuffled instruction": shuffle_instructions(executor, env.instructions)
    }
    if dataset.frames.get(IMAGE_KEY, None) is not None:
        ablations["blind"] = blank_images(executor)
    return ablations


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
    assert settings.improve is not None
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


def _write_clips(
    env: EnvBase, executor: TensorDictModuleBase, folder: Path, settings: DemoSettings
) -> dict[str, Path]:
    """Write clips of the first episodes of the evaluation; return caption to PNG."""
    recorder = Recorder(settings.clips)
    result = evaluate(
        env,
        executor,
        settings.clips,
        seed=settings.seed,
        recorder=recorder,
        progress=False,
    )
    strips = {}
    for clip, episode in zip(recorder.videos, result.episodes, strict=True):
        outcome = "success" if episode.success else "failure"
        caption = f"{episode.instruction}: {outcome} after {episode.length} steps"
        words = re.sub(r"\W+", "_", episode.instruction)
        path = folder / f"clip_{episode.seed}_{words}.png"
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
        write_text(folder / f"{name.replace(' ', '_')}.json", result.to_json())
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
            "minutes of training": f"{log.seconds / 60:.1f}",
            "threads": str(torch.get_num_threads()),
            "torch": torch.__version__,
        },
    )


def _successes(tuned: FinetuneResult | None) -> list[tuple[int, float]]:
    """Return (iteration, success rate) of every evaluation of the fine-tuning."""
    if tuned is None:
        return []
    evaluated = [row for row in tuned.log if row.get("success") is not None]
    return [(0, tuned.before.success_rate)] + [
        (int(row["iteration"]), row["success"]) for row in evaluated
    ]
