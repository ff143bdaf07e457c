"""LIBERO-Object from images: one policy cloned from scripted demonstrations.

Demonstrations of all ten tasks are collected, with pushes that the expert corrects, one
policy that reads both cameras, the state and the instruction is cloned from them, and
it is evaluated from the official initial states, which no demonstration used: as it is,
without each of its inputs, and in an open loop.

    python benchmarks/libero_object.py --folder runs/libero_object
    python benchmarks/libero_object.py --quick

What the folder holds is not made anew: a run that was cut off goes on, and processes
that `--only collect` or `--only evaluate` some of the `--tasks` share the work.

Source of the tasks: Liu et al., "LIBERO" (2023). The demonstrations are scripted, not
the human ones of LIBERO: success rates compare with those of policies cloned from the
same data, and not with published tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import tyro
from tensordict import NonTensorStack, TensorDictBase
from tensordict.nn import TensorDictModuleBase

from torchrl_vla.data import DemonstrationDataset, aggregate, collect
from torchrl_vla.envs import LiberoEnv, SimulatorOptions
from torchrl_vla.envs.libero import LiberoProtocol
from torchrl_vla.evaluation import (
    EditedObservation,
    EvaluationResult,
    PairedTable,
    blank_images,
    evaluate,
    shuffle_instructions,
    zero_state,
)
from torchrl_vla.recipes import (
    TrainingSettings,
    load_checkpoint,
    make_policy,
    make_space,
    save_checkpoint,
    train_behavior_cloning,
)
from torchrl_vla.schema import INSTRUCTION_KEY, InstructionTable


@dataclass(frozen=True)
class Settings:
    """Sizes of the job.

    Args:
        folder: Receives the demonstrations, the policy, the results and `report.md`.
        quick: Tiny sizes and two tasks.
        only: Do a part of the job; left out, all of it.
        suite: Suite of the tasks.
        tasks: Numbers of its tasks.
        demonstrations: Demonstrations of each task.
        noise: Size of the pushes that the expert corrects.
        image_size: Side of the images in pixels.
        image_interval: Frames from one recorded image to the next.
        steps: Optimizer steps.
        batch_size: Frames per step.
        hidden: Width of the policy.
        chunk_size: Actions of a chunk.
        replan_interval: Actions that are executed of it.
        episodes: Episodes of each task; 50 = every official initial state.
        control_episodes: Episodes of each task without an input and in an open loop.
        max_steps: Time limit of the evaluations; left out, the suite's.
        seed: Of everything.
    """

    folder: Path = Path("runs/libero_object")
    quick: bool = False
    only: Literal["collect", "train", "evaluate"] | None = None
    suite: str = "object"
    tasks: tuple[int, ...] = tuple(range(10))
    demonstrations: int = 30
    noise: float = 0.3
    image_size: int = 64
    image_interval: int = 4
    steps: int = 8000
    batch_size: int = 64
    hidden: int = 256
    chunk_size: int = 16
    replan_interval: int = 8
    episodes: int = 50
    control_episodes: int = 10
    max_steps: int | None = None
    seed: int = 0


QUICK = {
    "tasks": (0, 6),
    "demonstrations": 1,
    "image_size": 16,
    "image_interval": 16,
    "steps": 4,
    "batch_size": 8,
    "hidden": 16,
    "episodes": 1,
    "control_episodes": 1,
    "max_steps": 20,
}

#: What acts in an environment.
MakeActor = Callable[[LiberoEnv], TensorDictModuleBase]


def make_env(settings: Settings, suite: str, task: int) -> LiberoEnv:
    """Make one environment of one task, which renders where somebody looks."""
    return LiberoEnv(
        suite,
        [task],
        image_size=settings.image_size,
        protocol=LiberoProtocol(quick_rendering=True),
        options=SimulatorOptions(render_on_demand=True),
    )


def demonstrate(task: int, settings: Settings) -> DemonstrationDataset:
    """Collect the demonstrations of a task, or open those that are there."""
    folder = settings.folder / "demonstrations" / str(task)
    if (folder / "metadata.json").is_file():
        return DemonstrationDataset.from_folder(folder)
    env = make_env(settings, settings.suite, task)
    dataset = collect(
        env,
        env.make_expert(noise=settings.noise, seed=settings.seed),
        settings.demonstrations,
        folder=folder,
        seed=settings.seed,
        image_interval=settings.image_interval,
        overwrite=True,
        progress=False,
    )
    env.close()
    tries = dataset.provenance["attempts"]
    print(f"task {task}: {dataset.num_episodes} of {tries} succeeded", flush=True)
    return dataset


def train(dataset: DemonstrationDataset, settings: Settings) -> None:
    """Clone the demonstrations and save the policy."""
    torch.manual_seed(settings.seed)
    policy = make_policy(
        dataset, chunk_size=settings.chunk_size, hidden=settings.hidden
    )
    space = make_space(dataset.metadata)
    log = train_behavior_cloning(
        policy,
        dataset,
        TrainingSettings(
            steps=settings.steps,
            batch_size=settings.batch_size,
            seed=settings.seed,
            log_interval=100,
        ),
        space=space,
        folder=settings.folder / "training",
        progress=False,
    )
    log.to_csv(settings.folder / "learning_curve.csv")
    save_checkpoint(settings.folder / "policy", policy, space)


def load_actor(
    settings: Settings, env: LiberoEnv, *, open_loop: bool = False
) -> TensorDictModuleBase:
    """Return the policy as it acts in an environment, which may have new texts."""
    policy, space = load_checkpoint(settings.folder / "policy")
    table = InstructionTable(policy.instructions.texts)
    for text in env.instructions.texts:
        table.add(text)
    policy.instructions = table
    interval = None if open_loop else settings.replan_interval
    return space.executor(policy, replan_interval=interval)


def without_instruction(policy: TensorDictModuleBase) -> EditedObservation:
    """Give the policy a text that names no task."""

    def edit(tensordict: TensorDictBase) -> None:
        texts = ["do the task"] * tensordict.numel()
        tensordict.set(INSTRUCTION_KEY, NonTensorStack(*texts))

    return EditedObservation(policy, edit)


def controls(settings: Settings, table: InstructionTable) -> dict[str, MakeActor]:
    """Return what is compared with the policy, by name."""

    def load(env: LiberoEnv) -> TensorDictModuleBase:
        return load_actor(settings, env)

    return {
        "shuffled instruction": lambda env: shuffle_instructions(load(env), table),
        "no instruction": lambda env: without_instruction(load(env)),
        "blank images": lambda env: blank_images(load(env)),
        "no state": lambda env: zero_state(load(env)),
        "open loop": lambda env: load_actor(settings, env, open_loop=True),
    }


def measure(
    actors: Mapping[str, MakeActor],
    episodes: Mapping[str, int],
    settings: Settings,
    suite: str,
    task: int,
) -> dict[str, EvaluationResult]:
    """Evaluate what has no result of this task yet; the simulation is built once."""
    paths = {
        name: settings.folder / "results" / name.replace(" ", "_") / f"{task}.json"
        for name in actors
    }
    missing = [name for name, path in paths.items() if not path.is_file()]
    if missing:
        env = make_env(settings, suite, task)
        env.max_steps = settings.max_steps or env.max_steps
        for name in missing:
            actor = actors[name](env)
            result = evaluate(
                env, actor, episodes[name], seed=settings.seed, progress=False
            )
            paths[name].parent.mkdir(parents=True, exist_ok=True)
            paths[name].write_text(result.to_json())
            print(f"task {task}, {name}: {cell(result)}", flush=True)
        env.close()
    return {name: EvaluationResult.from_json(path) for name, path in paths.items()}


def merge(results: Sequence[EvaluationResult]) -> EvaluationResult:
    """Return one result of the episodes of several."""
    return EvaluationResult([e for result in results for e in result.episodes])


def cell(result: EvaluationResult) -> str:
    """Return a success rate in % with its interval."""
    low, high = result.interval
    return f"{100 * result.success_rate:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def table_of(results: Mapping[str, Sequence[EvaluationResult]]) -> list[str]:
    """Return success by task, each column a name with a result for each task.

    Below it, the first column is compared with the others, on the episodes that both
    ran: the first ones of each task.
    """
    first, *others = results
    lines = [f"| task | {' | '.join(results)} |", "|---" * (len(results) + 1) + "|"]
    for number, mine in enumerate(results[first]):
        cells = [cell(column[number]) for column in results.values()]
        lines.append(f"| {mine.episodes[0].instruction} | {' | '.join(cells)} |")
    cells = [cell(merge(column)) for column in results.values()]
    lines += [f"| **all** | {' | '.join(cells)} |", ""]
    for name in others:
        pairs = list(zip(results[first], results[name], strict=True))
        paired = PairedTable.from_episodes(
            [e for mine, other in pairs for e in mine.episodes[: len(other)]],
            [e for _, other in pairs for e in other.episodes],
        )
        low, high = paired.interval()
        lines.append(
            f"- {first} minus {name}: {100 * paired.difference:.1f} points "
            f"[{100 * low:.1f}, {100 * high:.1f}], {paired.test} p "
            f"{paired.p_value:.2g}, {paired.episodes} pairs"
        )
    return lines


def main(settings: Settings) -> None:
    """Run what is missing of the job."""
    if settings.quick:
        settings = replace(settings, **QUICK)
    settings.folder.mkdir(parents=True, exist_ok=True)
    parts = [demonstrate(task, settings) for task in settings.tasks]
    if settings.only == "collect":
        return
    if settings.only != "evaluate" and not (settings.folder / "policy").is_dir():
        dataset = aggregate(*parts)
        print(dataset, flush=True)
        train(dataset, settings)
    if settings.only == "train":
        return
    policy, _ = load_checkpoint(settings.folder / "policy")
    others = controls(settings, policy.instructions)
    actors = {"policy": lambda env: load_actor(settings, env), **others}
    episodes = dict.fromkeys(others, settings.control_episodes)
    episodes["policy"] = settings.episodes
    by_task = [
        measure(actors, episodes, settings, settings.suite, task)
        for task in settings.tasks
    ]
    lines = table_of({name: [task[name] for task in by_task] for name in actors})
    report = settings.folder / "report.md"
    report.write_text("\n".join(lines) + "\n")
    print(report.read_text())


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
