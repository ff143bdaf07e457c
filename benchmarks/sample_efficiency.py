"""Environment steps from a half-trained clone to 90 %: off-policy methods and PPO.

Every method starts from the same clone, which `finetuning_curves.py` makes, and is
evaluated on the same episodes, which training never saw. What is counted is the steps
of the environment until the first evaluation at or above the goal. Results are kept in
a folder, and what is there is not run again; a run that was stopped goes on.

    python benchmarks/sample_efficiency.py --tasks tabletop --methods ppo residual
    python benchmarks/sample_efficiency.py --quick
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import tyro
from finetuning_curves import CASES, Case, clone, read_evaluations, shrink

from torchrl_vla.data import DemonstrationDataset
from torchrl_vla.evaluation import compare
from torchrl_vla.recipes import (
    QC,
    RLPD,
    FinetuneSettings,
    NoiseSpace,
    Residual,
    RunLog,
    finetune,
    load_checkpoint,
    make_environment,
    to_stochastic,
)

#: The tabletop without images: what is learned costs little, what is seen nothing.
CASES["tabletop-state-gaussian-ppo"] = replace(
    CASES["tabletop-gaussian-ppo"],
    env="state_tabletop:make_env",
    options={},
    demonstrations=(12, 24),
    rounds=12,
    steps=10,
    num_envs=256,
    settings=replace(
        CASES["tabletop-gaussian-ppo"].settings,
        iterations=60,
        eval_interval=5,
        eval_episodes=200,
    ),
)
#: PPO's case by task and head: its clone, its settings, its demonstrations.
TASKS = {
    "tabletop": {"regression": "tabletop-gaussian-ppo", "flow": "tabletop-flow-ppo"},
    "tabletop-state": {"regression": "tabletop-state-gaussian-ppo"},
    "reach": {"regression": "metaworld-reach-gaussian-ppo"},
}
SHARED = {
    "members": 4,
    "hidden": 128,
    "gamma": 0.99,
    "updates_per_decision": 2.0,
    "critic_lr": 1e-3,
    "tau": 0.01,
}
OFF_POLICY = FinetuneSettings(
    iterations=40,
    minibatch_size=128,
    lr=1e-3,
    eval_interval=5,
    eval_episodes=200,
    max_grad_norm=10.0,
)


@dataclass(frozen=True)
class Method:
    """One way to improve a clone.

    `demonstrations`: mixed into the batches.
    """

    head: str
    settings: FinetuneSettings | None = None
    demonstrations: bool = False
    num_envs: int = 32


METHODS = {
    "ppo": Method("regression"),
    "ppo-flow": Method("flow"),
    "residual": Method(
        "regression",
        replace(OFF_POLICY, algorithm=Residual(bound=0.5, warm_up=300, **SHARED)),
        demonstrations=True,
    ),
    "rlpd": Method(
        "regression",
        replace(OFF_POLICY, lr=1e-4, algorithm=RLPD(warm_up=300, **SHARED)),
        demonstrations=True,
    ),
    "dsrl": Method("flow", replace(OFF_POLICY, algorithm=NoiseSpace(**SHARED))),
    "qc": Method(
        "flow",
        replace(OFF_POLICY, algorithm=QC(num_samples=16, warm_up=300, **SHARED)),
        demonstrations=True,
    ),
}


def run(task: str, name: str, seed: int, folder: Path, quick: bool) -> None:
    """Clone and improve, unless it is done; goes on where it was stopped."""
    method = METHODS[name]
    if method.head not in TASKS[task]:
        print(f"{task}: no clone with the head {method.head!r} for {name}")
        return
    case_name = TASKS[task][method.head]
    case = shrink(CASES[case_name]) if quick else CASES[case_name]
    make_env = partial(make_environment, case.env, **case.options, seed=seed)
    name_of_env = case.env.partition(":")[0]
    cloned = folder / "clones" / f"{name_of_env}-{case.head}-{seed}"
    if not (cloned / "policy").exists():
        clone(case, seed, cloned, make_env)
    policy, space = load_checkpoint(cloned / "policy")
    settings, num_envs = _settings(method, case, quick)
    if name in ("ppo", "ppo-flow", "rlpd"):
        policy = to_stochastic(policy, **_noise(name, case))
    demonstrations = None
    if method.demonstrations:
        demonstrations = DemonstrationDataset.from_folder(cloned / "demonstrations")
    run_name = case_name if name.startswith("ppo") else f"{task}-{name}"
    result = finetune(
        policy,
        space,
        make_env(num_envs=num_envs),
        folder / f"{run_name}-{seed}",
        replace(settings, seed=seed),
        eval_env=make_env(num_envs=100),
        demonstrations=demonstrations,
        progress=False,
    )
    print(task, name, seed, result.comparison.verdict, sep=": ", flush=True)


def _noise(name: str, case: Case) -> dict[str, float]:
    return {"initial_std": 0.3} if name == "rlpd" else case.stochastic


def _settings(method: Method, case: Case, quick: bool) -> tuple[FinetuneSettings, int]:
    settings = method.settings or case.settings
    num_envs = case.num_envs if method.settings is None else method.num_envs
    if quick:
        settings = replace(settings, iterations=1, minibatch_size=8, eval_episodes=4)
        num_envs = 4
        if method.settings is not None and method.demonstrations:
            algorithm = replace(settings.algorithm, warm_up=2)
            settings = replace(settings, algorithm=algorithm)
    return settings, num_envs


def summarize(task: str, name: str, seed: int, folder: Path, goal: float) -> str | None:
    """Return a row of the table in the documentation; None = it was not run."""
    run_name = TASKS[task].get(METHODS[name].head, "")
    run_name = run_name if name.startswith("ppo") else f"{task}-{name}"
    path = folder / f"{run_name}-{seed}"
    if not (path / "log.csv").exists():
        return None
    results, log = read_evaluations(path), RunLog.read(path / "log.csv")
    steps = minutes = 0.0
    spent = {0: (0.0, 0.0)}
    for row in log:
        steps, minutes = steps + row["env_steps"], minutes + row["seconds"] / 60
        spent[int(row["iteration"])] = (steps, minutes)
    reached = [i for i, r in results.items() if r.success_rate >= goal and i in spent]
    first, last = results[min(results)], results[max(results)]
    low, high = (100 * bound for bound in compare(last, first).interval)
    at = f"{spent[reached[0]][0]:,.0f}" if reached else f"not in {steps:,.0f}"
    minute = f"{spent[reached[0]][1]:.1f}" if reached else f"not in {minutes:.1f}"
    return (
        f"| {task} | {name} | {seed} | {100 * first.success_rate:.0f} % | "
        f"{100 * last.success_rate:.0f} % | [{low:+.0f}, {high:+.0f}] | {at} | "
        f"{minute} |"
    )


@dataclass(frozen=True)
class Arguments:
    """Sample efficiency of fine-tuning."""

    tasks: tuple[str, ...] = tuple(TASKS)
    """Which of them."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Which of them; a method whose clone a task does not have is left out."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of demonstrations, initial weights and training."""
    folder: Path = Path("runs/finetuning_curves")
    """Where the runs are kept, beside those of finetuning_curves.py."""
    goal: float = 0.9
    """Success that is waited for."""
    threads: int = 2
    """Of PyTorch."""
    quick: bool = False
    """Only show that it runs."""
    report: bool = False
    """Only print the table of what the folder holds."""


def main(arguments: Arguments) -> None:
    """Run what is missing, and print the table."""
    torch.set_num_threads(arguments.threads)
    combinations = [
        (task, name, seed)
        for seed in arguments.seeds
        for task in arguments.tasks
        for name in arguments.methods
    ]
    if not arguments.report:
        for task, name, seed in combinations:
            run(task, name, seed, arguments.folder, arguments.quick)
    print(
        "| task | method | seed | before | after | paired 95 % | steps to "
        f"{100 * arguments.goal:.0f} % | minutes to it |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for combination in combinations:
        row = summarize(*combination, arguments.folder, arguments.goal)
        if row is not None:
            print(row)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
