"""The policy of `libero_object.py` on LIBERO-PRO, paired with the plain suite.

`_lan` says the instruction in other words, `_object` changes the objects' looks,
`_swap` exchanges their places, and `_task` asks for another object. Episode `i` has the
same task and the same number of initial state in each.

    python benchmarks/libero_object.py --folder runs/libero_object
    python benchmarks/libero_pro.py --folder runs/libero_object --episodes 10

What the folder holds is not run again, as the plain episodes of `libero_object.py`.

Source: Zhou et al., "LIBERO-PRO" (2025), arXiv 2510.03827.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import tyro
from libero_object import QUICK, Settings, load_actor, measure, table_of

from torchrl_vla.evaluation import EvaluationResult

VARIANTS = ("lan", "object", "swap", "task")


@dataclass(frozen=True)
class ProSettings:
    """Sizes of the job.

    Args:
        folder: Of `libero_object.py`; receives the results and `report_pro.md`.
        quick: The sizes of its quick run.
        episodes: Episodes of each task in each variant, at most as many as there.
        variants: Which variants.
        tasks: Numbers of the tasks.
        image_size: As the policy was trained with.
        replan_interval: Actions of a chunk that are executed.
    """

    folder: Path = Path("runs/libero_object")
    quick: bool = False
    episodes: int = 10
    variants: tuple[str, ...] = VARIANTS
    tasks: tuple[int, ...] = tuple(range(10))
    image_size: int = 64
    replan_interval: int = 8


def main(settings: ProSettings) -> None:
    """Run what is missing of the job."""
    shared = Settings(
        folder=settings.folder,
        tasks=settings.tasks,
        image_size=settings.image_size,
        replan_interval=settings.replan_interval,
    )
    episodes = settings.episodes
    if settings.quick:
        shared, episodes = replace(shared, **QUICK), 1
    suites = {"policy": shared.suite} | {
        f"_{variant}": f"{shared.suite}_{variant}" for variant in settings.variants
    }
    results: dict[str, list[EvaluationResult]] = {name: [] for name in suites}
    for task in shared.tasks:
        for name, suite in suites.items():
            found = measure(
                {name: lambda env: load_actor(shared, env)},
                {name: episodes},
                shared,
                suite,
                task,
            )
            cut = found[name].episodes[:episodes]
            results[name].append(replace(found[name], episodes=cut))
    report = settings.folder / "report_pro.md"
    report.write_text("\n".join(table_of(results)) + "\n")
    print(report.read_text())


if __name__ == "__main__":
    main(tyro.cli(ProSettings, description=__doc__))
