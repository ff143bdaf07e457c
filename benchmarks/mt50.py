"""MetaWorld MT50 from images: demonstrations, one policy, and the published table.

Scripted demonstrations of all 50 tasks are collected, one policy that reads an image,
the hand and the instruction is cloned from them, and it is evaluated on other initial
states. The budget in minutes is split among the three, and each stops in time.

    python benchmarks/mt50.py --minutes 14 --workers 16 --device cuda
    python benchmarks/mt50.py --quick            # the same code in half a minute

The folder receives `report.md`, `report.json` and the policy. On a machine without a
network, `benchmarks/mt50.sh` installs prepared wheels first.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import tyro

from torchrl_vla.data import DemonstrationDataset, aggregate, collect
from torchrl_vla.envs import MetaWorldPixelsEnv, SimulatorOptions
from torchrl_vla.envs.metaworld_tasks import DIFFICULTIES, INSTRUCTIONS
from torchrl_vla.errors import VLAError
from torchrl_vla.evaluation import EvaluationResult, evaluate, wilson_interval
from torchrl_vla.recipes import (
    TrainingSettings,
    load_executor,
    make_policy,
    make_space,
    save_checkpoint,
    train_behavior_cloning,
)

#: Success in % (easy, medium, hard, very hard, mean). Source: SmolVLA (arXiv
#: 2506.01844), which quotes the first two from TinyVLA (arXiv 2409.12514).
PUBLISHED = {
    "Diffusion Policy": (23.1, 10.7, 1.9, 6.1, 10.5),
    "TinyVLA": (77.6, 21.5, 11.4, 15.8, 31.6),
    "pi0 (3.5B)": (77.9, 51.8, 53.3, 20.0, 50.8),
    "SmolVLA (2.25B)": (87.1, 51.8, 70.0, 64.0, 68.2),
}
#: Where each part of the job ends, as a share of the budget. The rest is the start of
#: processes and the report.
ENDS = {"collect": 0.24, "train": 0.76, "evaluate": 0.95}


@dataclass(frozen=True)
class Settings:
    """Sizes of the job.

    Args:
        minutes: Budget of the whole job.
        quick: Tiny sizes and four tasks, one of each difficulty.
        device: Where the policy is trained; left out, a GPU if there is one. It acts
            on the CPU, in the worker processes.
        workers: Processes that simulate; 0 = this one does.
        folder: Receives the report, the policy and, meanwhile, the demonstrations.
        tasks: Tasks; empty = all 50.
        demonstrations: Demonstrations of each task, at most.
        episodes: Episodes of each task in the evaluation, at most.
        rounds: Parts in which the two are run; the time is looked at in between.
        noise: Noise on the action that the expert executes.
        image_size: Side of the images in pixels.
        image_interval: Frames from one recorded image to the next.
        max_steps: Time limit of an episode.
        head: What the policy emits.
        hidden: Width of the policy.
        chunk_size: Actions of a chunk.
        replan_interval: Actions that are executed of it.
        batch_size: Frames per optimizer step.
        lr: Peak learning rate.
        steps: Optimizer steps, at most.
        seed: Of everything.
    """

    minutes: float = 14.0
    quick: bool = False
    device: str | None = None
    workers: int = 1
    folder: Path = Path("runs/mt50")
    tasks: tuple[str, ...] = ()
    demonstrations: int = 50
    episodes: int = 50
    rounds: int = 10
    noise: float = 0.1
    image_size: int = 128
    image_interval: int = 2
    max_steps: int = 500
    head: Literal["regression", "flow", "diffusion"] = "regression"
    hidden: int = 512
    chunk_size: int = 16
    replan_interval: int = 8
    batch_size: int = 256
    lr: float = 1e-3
    steps: int = 1_000_000
    seed: int = 0


QUICK = {
    "tasks": ("drawer-close", "sweep-into", "hand-insert", "shelf-place"),
    "demonstrations": 2,
    "episodes": 1,
    "rounds": 1,
    "image_size": 16,
    "image_interval": 8,
    "max_steps": 150,
    "hidden": 16,
    "batch_size": 16,
    "steps": 5,
}


class Clock:
    """The budget: when it began, and when each part of the job has to end."""

    def __init__(self, minutes: float) -> None:
        self.began, self.seconds = time.time(), 60.0 * minutes
        self.spent: dict[str, float] = {}

    def deadline(self, part: str) -> float:
        """Return the time of day, in s, at which a part ends."""
        return self.began + ENDS[part] * self.seconds

    def left(self, part: str) -> float:
        """Return the seconds that are left to a part."""
        return max(1.0, self.deadline(part) - time.time())

    def finish(self, part: str) -> None:
        """Note how long a part took."""
        self.spent[part] = time.time() - self.began - sum(self.spent.values())


def make_env(task: str, settings: Settings) -> MetaWorldPixelsEnv:
    """Make two environments of one task that render where somebody looks."""
    return MetaWorldPixelsEnv(
        task,
        num_envs=2,
        image_size=settings.image_size,
        max_steps=settings.max_steps,
        options=SimulatorOptions(render_on_demand=True),
    )


def in_turns(
    tasks: Sequence[str],
    total: int,
    settings: Settings,
    deadline: float,
) -> Iterator[tuple[str, int, int]]:
    """Yield ``(task, first episode, number of episodes)`` until the time is over.

    Tasks take turns, so that they have as many when it is. The first round is for all.
    """
    rounds, longest = min(settings.rounds, total), 0.0
    for number in range(rounds):
        first = total * number // rounds
        for task in tasks:
            began = time.time()
            if number and began + longest > deadline:
                return
            yield task, first, total * (number + 1) // rounds - first
            longest = max(longest, time.time() - began)


def collect_tasks(
    tasks: Sequence[str], settings: Settings, deadline: float
) -> list[tuple[str, str]]:
    """Collect demonstrations of some tasks, in a worker process.

    Returns:
        Each task with a folder of demonstrations, or with the reason why there is none.
    """
    torch.set_num_threads(1)
    envs = {task: make_env(task, settings) for task in tasks}
    written = []
    for task, first, episodes in in_turns(
        tasks, settings.demonstrations, settings, deadline
    ):
        folder = settings.folder / "demonstrations" / f"{task}-{first}"
        seed = settings.seed + first
        try:
            collect(
                envs[task],
                envs[task].make_expert(noise=settings.noise, seed=seed),
                episodes,
                folder=folder,
                seed=seed,
                image_interval=settings.image_interval,
                overwrite=True,
                progress=False,
            )
            written.append((task, str(folder)))
        except VLAError as error:  # the others go on
            print(f"{task}: {error}", flush=True)
    for env in envs.values():
        env.close()
    return written


def evaluate_tasks(
    tasks: Sequence[str], settings: Settings, deadline: float
) -> list[tuple[str, str]]:
    """Evaluate the policy on some tasks, in a worker process.

    Returns:
        Each task with a result as JSON, once for each of its rounds.
    """
    torch.set_num_threads(1)
    envs = {task: make_env(task, settings) for task in tasks}
    actors = {
        task: load_executor(
            settings.folder / "policy",
            metadata=env.metadata,
            replan_interval=settings.replan_interval,
        )
        for task, env in envs.items()
    }
    results = []
    for task, first, episodes in in_turns(tasks, settings.episodes, settings, deadline):
        actors[task].reset()
        result = evaluate(
            envs[task],
            actors[task],
            episodes,
            seed=settings.seed,
            first=first,
            progress=False,
        )
        results.append((task, result.to_json()))
    for env in envs.values():
        env.close()
    return results


def train(
    dataset: DemonstrationDataset, settings: Settings, seconds: float
) -> dict[str, object]:
    """Clone the demonstrations and save the policy; return what it took."""
    torch.manual_seed(settings.seed)
    policy = make_policy(
        dataset,
        chunk_size=settings.chunk_size,
        head=settings.head,
        hidden=settings.hidden,
    )
    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    space = make_space(dataset.metadata, settings.head)
    log = train_behavior_cloning(
        policy.to(device),
        dataset,
        TrainingSettings(
            steps=settings.steps,
            batch_size=settings.batch_size,
            lr=settings.lr,
            max_seconds=seconds,
            seed=settings.seed,
            log_interval=100,
        ),
        space=space,
        progress=False,
    )
    save_checkpoint(settings.folder / "policy", policy.cpu(), space)
    log.to_csv(settings.folder / "learning_curve.csv")
    steps, loss = log.losses[-1]
    return {
        "weights": f"{sum(w.numel() for w in policy.parameters()):,}",
        "optimizer steps": steps,
        "loss": round(loss, 4),
        "device": torch.cuda.get_device_name() if "cuda" in device else device,
    }


def merge(results: Sequence[EvaluationResult]) -> EvaluationResult:
    """Return one result of the episodes of several."""
    return EvaluationResult([e for result in results for e in result.episodes])


def mean_of_groups(groups: Sequence[EvaluationResult]) -> tuple[float, float, float]:
    """Return the mean of the groups' rates with its 95 % interval.

    The published mean weighs groups alike, whatever their number of tasks. The interval
    squares and adds the groups' own (Newcombe, 1998).
    """
    rates = [group.success_rate for group in groups]
    mean = sum(rates) / len(rates)
    ends = [wilson_interval(group.successes, len(group)) for group in groups]
    below = math.hypot(*(r - low for r, (low, _) in zip(rates, ends, strict=True)))
    above = math.hypot(*(high - r for r, (_, high) in zip(rates, ends, strict=True)))
    return mean, mean - below / len(rates), mean + above / len(rates)


def table(by_task: Mapping[str, EvaluationResult], name: str) -> list[str]:
    """Return the published table in Markdown, with our row."""
    groups = {
        group: merge([by_task[task] for task in tasks if task in by_task])
        for group, tasks in DIFFICULTIES.items()
        if any(task in by_task for task in tasks)
    }
    ours = []
    for group in DIFFICULTIES:
        if group not in groups:
            ours.append("")
            continue
        low, high = groups[group].interval
        ours.append(_cell(groups[group].success_rate, low, high))
    ours.append(_cell(*mean_of_groups(list(groups.values()))))
    head = ["policy", *DIFFICULTIES, "mean"]
    published = {n: [f"{x:.1f}" for x in row] for n, row in PUBLISHED.items()}
    rows = [[n, *cells] for n, cells in {**published, name: ours}.items()]
    rule = ["---"] * len(head)
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]


def _cell(rate: float, low: float, high: float) -> str:
    return f"{100 * rate:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def write_report(
    by_task: Mapping[str, EvaluationResult],
    counts: Mapping[str, int],
    facts: Mapping[str, object],
    settings: Settings,
) -> Path:
    """Write the table, the tasks and what is needed to repeat it."""
    episodes = [len(result) for result in by_task.values()]
    lines = [
        "# MetaWorld MT50 from images",
        "",
        f"Success in %, {min(episodes)} to {max(episodes)} episodes of each of "
        f"{len(by_task)} tasks, 95 % intervals. Demonstrations of both are MetaWorld's "
        "scripted policies; the published rows have 50 of each task, and their own "
        "initial states. Source of the rows: SmolVLA (arXiv 2506.01844).",
        "",
        *table(by_task, f"this policy ({settings.head}, {facts['weights']} weights)"),
        "",
        "| task | difficulty | success | demonstrations |",
        "|---|---|---|---|",
    ]
    for group, tasks in DIFFICULTIES.items():
        for task in tasks:
            if task in by_task:
                result = by_task[task]
                cell = _cell(result.success_rate, *result.interval)
                lines.append(f"| {task} | {group} | {cell} | {counts[task]} |")
    lines += ["", *(f"- {name}: {value}" for name, value in facts.items())]
    path = settings.folder / "report.md"
    path.write_text("\n".join(lines) + "\n")
    stored = {
        "settings": {name: str(value) for name, value in asdict(settings).items()},
        "facts": {**facts},
        "demonstrations": {**counts},
        "tasks": {task: json.loads(r.to_json()) for task, r in by_task.items()},
    }
    (settings.folder / "report.json").write_text(json.dumps(stored, indent=1))
    return path


@contextmanager
def processes(workers: int) -> Iterator[Callable[..., Future]]:
    """Start workers, and yield what gives them a job; 0 = this process does it."""
    if workers:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            yield pool.submit
        return

    def call(job: Callable[..., list], *arguments: object) -> Future:
        done: Future = Future()
        done.set_result(job(*arguments))
        return done

    yield call


def main(settings: Settings) -> None:
    """Run the job."""
    clock = Clock(settings.minutes)
    if settings.quick:
        settings = replace(settings, **QUICK)
    settings.folder.mkdir(parents=True, exist_ok=True)
    tasks = settings.tasks or tuple(INSTRUCTIONS)
    workers = max(1, min(settings.workers, len(tasks)))
    shares = [tasks[worker::workers] for worker in range(workers)]
    with processes(settings.workers) as submit:

        def run(job: Callable[..., list], part: str) -> list:
            end = clock.deadline(part)
            jobs = [submit(job, share, settings, end) for share in shares]
            return [item for one in jobs for item in one.result()]

        written = run(collect_tasks, "collect")
        parts = [(t, DemonstrationDataset.from_folder(f)) for t, f in written]
        dataset = aggregate(*(part for _, part in parts))
        for task in tasks:  # one without a demonstration is evaluated all the same
            dataset.instructions.add(INSTRUCTIONS[task])
        clock.finish("collect")
        facts = train(dataset, settings, clock.left("train"))
        clock.finish("train")
        results = run(evaluate_tasks, "evaluate")
        clock.finish("evaluate")
    by_task = {
        task: merge([EvaluationResult.from_json(x) for t, x in results if t == task])
        for task in tasks
    }
    counts: Counter[str] = Counter()
    for task, part in parts:
        counts[task] += part.num_episodes
    facts |= {"frames": len(dataset), "workers": workers, "torch": torch.__version__}
    facts |= {f"seconds to {part}": round(x) for part, x in clock.spent.items()}
    print(write_report(by_task, counts, facts, settings).read_text())


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
