"""Learning curves: cloned policies improved by PPO and GRPO, three seeds each.

A policy is cloned from few demonstrations until it succeeds about half of the time,
and fine-tuned by `finetune`. Before and after are evaluated on the same initial states,
which training never saw. With seeds 0 to 2 and every case this takes two hours on two
cores: name cases to run a part. Results are kept in a folder, and what is there is not
run again.

    python benchmarks/finetuning_curves.py --cases tabletop-tokens-ppo --seeds 0
    python benchmarks/finetuning_curves.py --plot docs/images/finetuning.png
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro

from torchrl_vla.data import collect
from torchrl_vla.evaluation import EvaluationResult, compare, evaluate
from torchrl_vla.recipes import (
    GRPO,
    PPO,
    FinetuneSettings,
    RunLog,
    TrainingSettings,
    finetune,
    load_checkpoint,
    make_environment,
    make_policy,
    make_space,
    save_checkpoint,
    to_stochastic,
    train_behavior_cloning,
)

TABLETOP = {"tasks": ("reach",), "image_size": 32}
REACH = {"tasks": ("reach",)}


@dataclass(frozen=True)
class Case:
    """One learning curve: what is cloned, and how it is improved.

    Cloning takes up to `rounds` times `steps` optimizer steps, and keeps the weights of
    the round whose success, on episodes of their own, was nearest to one half. Where
    even that is below 40 %, it begins again with the next number of demonstrations.
    """

    env: str
    options: dict[str, Any]
    head: str
    demonstrations: tuple[int, ...]
    noise: float
    rounds: int
    steps: int
    num_envs: int
    settings: FinetuneSettings
    stochastic: dict[str, float] = field(default_factory=dict)


TOKENS = Case(
    env="tabletop",
    options=TABLETOP,
    head="tokens",
    demonstrations=(204, 264, 324),
    noise=0.3,
    rounds=12,
    steps=250,
    num_envs=512,
    settings=FinetuneSettings(
        algorithm=PPO(gamma=0.95),
        iterations=80,
        lr=5e-4,
        epochs=3,
        minibatch_size=256,
        eval_episodes=300,
    ),
)
CASES = {
    "tabletop-tokens-ppo": TOKENS,
    "tabletop-tokens-grpo": replace(
        TOKENS,
        num_envs=1024,
        settings=replace(
            TOKENS.settings,
            algorithm=GRPO(group_size=8),
            iterations=200,
            lr=7e-4,
            lr_decay=True,
        ),
    ),
    "tabletop-gaussian-ppo": replace(
        TOKENS,
        head="regression",  # gets its spread from to_stochastic
        demonstrations=(102, 132),
        rounds=20,
        steps=150,
        stochastic={"initial_std": 0.7},
        settings=replace(
            TOKENS.settings, iterations=120, lr=7e-4, lr_decay=True, target_kl=0.03
        ),
    ),
    "tabletop-flow-ppo": replace(
        TOKENS,
        head="flow",
        rounds=20,
        steps=150,
        stochastic={"flow_noise": 1.5},
        settings=replace(TOKENS.settings, iterations=90, lr=3e-4, target_kl=0.03),
    ),
    "metaworld-reach-gaussian-ppo": Case(
        env="metaworld",
        options=REACH,
        head="regression",
        demonstrations=(12, 16),
        noise=0.1,
        rounds=8,
        steps=200,
        num_envs=64,
        stochastic={"initial_std": 0.5},
        settings=FinetuneSettings(
            algorithm=PPO(critic_warmup=2),
            iterations=30,
            lr=3e-4,
            epochs=5,
            minibatch_size=256,
            granularity="action",
            target_kl=0.03,
            eval_episodes=200,
        ),
    ),
}
_CHUNK_SIZE = 8


def run_case(name: str, case: Case, seed: int, folder: Path) -> None:
    """Clone and fine-tune, unless it is done; goes on where it was stopped."""
    make_env = partial(make_environment, case.env, **case.options, seed=seed)
    cloned = folder / "clones" / f"{case.env}-{case.head}-{seed}"  # PPO's and GRPO's
    if not (cloned / "policy").exists():
        clone(case, seed, cloned, make_env)
    policy, space = load_checkpoint(cloned / "policy")
    result = finetune(
        to_stochastic(policy, **case.stochastic),
        space,
        make_env(num_envs=case.num_envs),
        folder / f"{name}-{seed}",
        replace(case.settings, seed=seed),
        eval_env=make_env(num_envs=100),
    )
    print(name, seed, result.comparison.verdict, sep=": ")


def clone(case: Case, seed: int, folder: Path, make_env: Any) -> None:
    """Collect demonstrations and clone them, about half."""
    for demonstrations in case.demonstrations:
        rate = clone_about_half(case, demonstrations, seed, folder, make_env)
        if rate >= 0.4:
            break
    (folder / "nearest").rename(folder / "policy")


def clone_about_half(
    case: Case, demonstrations: int, seed: int, folder: Path, make_env: Any
) -> float:
    """Write the policy that is nearest to one half; return its success."""
    env = make_env(num_envs=32)
    dataset = collect(
        env,
        env.make_expert(noise=case.noise, seed=seed),
        demonstrations,
        folder=folder / "demonstrations",
        balanced=True,
        seed=seed,
        overwrite=True,
    )
    torch.manual_seed(seed)
    policy = make_policy(dataset, chunk_size=_CHUNK_SIZE, head=case.head, hidden=128)
    space = make_space(dataset.metadata, case.head)
    eval_env = make_env(num_envs=100)
    nearest = -1.0  # farther than any
    for number in range(case.rounds):
        train_behavior_cloning(
            policy,
            dataset,
            TrainingSettings(steps=case.steps, batch_size=64, seed=seed + 100 * number),
            space=space,
        )
        actor = space.executor(policy.eval())
        result = evaluate(eval_env, actor, 200, seed=seed + 500)
        rate = result.success_rate
        print(
            f"{demonstrations} demonstrations, round {number + 1}: {100 * rate:.0f} %"
        )
        if abs(rate - 0.5) < abs(nearest - 0.5):
            nearest = rate
            save_checkpoint(folder / "nearest", policy, space)
        if rate > 0.5:
            break
    return nearest


def shrink(case: Case) -> Case:
    """Return a case that takes seconds and teaches nothing."""
    settings = replace(case.settings, iterations=1, epochs=1, eval_episodes=4)
    return replace(
        case,
        demonstrations=(12,),
        rounds=2,
        steps=2,
        num_envs=8,
        settings=settings,
    )


def read_evaluations(run: Path) -> dict[int, EvaluationResult]:
    """Return the evaluations of a training by iteration, the first at 0."""
    files = sorted((run / "evaluations").glob("*.json"))
    return {int(file.stem): EvaluationResult.from_json(file) for file in files}


def summarize(folder: Path) -> list[str]:
    """Return the rows of the table in the documentation."""
    rows = []
    for path in sorted(folder.glob("*/comparison.json")):
        name, _, seed = path.parent.name.rpartition("-")
        before, *_, after = read_evaluations(path.parent).values()
        low, high = (100 * bound for bound in compare(after, before).interval)
        log = RunLog.read(path.parent / "log.csv")
        minutes = sum(row["seconds"] for row in log) / 60
        rows.append(
            f"| {name} | {seed} | {100 * before.success_rate:.0f} % | "
            f"{100 * after.success_rate:.0f} % | [{low:+.0f}, {high:+.0f}] | "
            f"{log[-1]['iteration']:.0f} | {minutes:.1f} |"
        )
    return rows


def plot(folder: Path, path: Path) -> None:
    """Draw one panel per case: success against minutes of training."""
    import matplotlib.pyplot as plt

    cases = [name for name in CASES if list(folder.glob(f"{name}-[0-9]*"))]
    fig, axes = plt.subplots(
        1, len(cases), figsize=(3 * len(cases), 2.8), sharey=True, squeeze=False
    )
    for ax, name in zip(axes[0], cases):
        for run in sorted(folder.glob(f"{name}-[0-9]*")):
            log = RunLog.read(run / "log.csv")
            results = read_evaluations(run)
            minutes = {0: 0.0}
            for row in log:
                last = minutes[max(minutes)]
                minutes[int(row["iteration"])] = last + row["seconds"] / 60
            xs = [minutes[i] for i in results]
            ys = [100 * r.success_rate for r in results.values()]
            bounds = [r.interval for r in results.values()]
            (line,) = ax.plot(xs, ys, marker=".", label=run.name[-1])
            low, high = ([100 * b[i] for b in bounds] for i in (0, 1))
            ax.fill_between(xs, low, high, color=line.get_color(), alpha=0.15)
        ax.axhline(90, color="gray", linewidth=0.5)
        ax.set(xlabel="minutes of training", ylim=(0, 101))
        ax.set_title(name.replace("-", " "), size=10)
    axes[0, 0].set_ylabel("success, %")
    axes[0, 0].legend(title="seed", loc="lower right")
    fig.tight_layout()
    fig.savefig(path, dpi=110)


@dataclass(frozen=True)
class Arguments:
    """Learning curves of fine-tuning."""

    cases: tuple[str, ...] = tuple(CASES)
    """Which of them."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of demonstrations, initial weights and training."""
    folder: Path = Path("runs/finetuning_curves")
    """Where the runs are kept."""
    threads: int = 2
    """Of PyTorch."""
    quick: bool = False
    """Only show that it runs."""
    plot: Path | None = None
    """Only draw what the folder holds into this file."""


def main(arguments: Arguments) -> None:
    """Run what is missing, and print the table."""
    if arguments.plot is not None:
        plot(arguments.folder, arguments.plot)
    else:
        torch.set_num_threads(arguments.threads)
        for seed in arguments.seeds:
            for name in arguments.cases:
                case = shrink(CASES[name]) if arguments.quick else CASES[name]
                run_case(name, case, seed, arguments.folder)
    print("| case | seed | before | after | paired 95 % | iterations | minutes |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(summarize(arguments.folder)))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
