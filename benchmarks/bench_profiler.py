"""Cost of the profiler: a cloning step without it, in timing and in summary mode.

    OMP_NUM_THREADS=1 python benchmarks/bench_profiler.py

The contestants take the same steps from the same weights with the same batches; their
weights are compared bit by bit first. The network with a state alone is so small that
overheads show; that with images is the tabletop's. Time is that of the processor, so
that others on the machine do not count.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from contest import check_equal, print_head, print_rows, read_quick, time_in_turns
from torch.optim import AdamW

from torchrl_vla.profiling import Sections, TrainingProfiler
from torchrl_vla.recipes import make_cloning_loss, make_policy, make_space
from torchrl_vla.recipes.behavior_cloning import make_training_transform
from torchrl_vla.recipes.profile_case import make_profile_dataset
from torchrl_vla.recipes.training_loop import _Loop, constant_rate
from torchrl_vla.recipes.training_settings import TrainingSettings


class Contestant:
    """A training that takes one step per call."""

    def __init__(self, profiler: TrainingProfiler | None, images: bool, batch: int):
        dataset = make_profile_dataset()
        if not images:
            del dataset.frames["observation", "image"]
        torch.manual_seed(0)
        policy = make_policy(dataset, chunk_size=8, hidden=256 if images else 32)
        space = make_space(dataset.metadata)
        transform = make_training_transform(policy, space, dataset.storage)
        self.sections = Sections(profiler)
        self.loop = _Loop(
            policy.train(),
            make_cloning_loss(policy),
            dataset.replay_buffer(batch, transform=transform, seed=0),
            constant_rate(AdamW(policy.parameters(), lr=1e-4)),
            TrainingSettings(batch_size=batch, ema_decay=0.0, max_grad_norm=1.0),
            self.sections,
        )
        self.step = 0

    def __call__(self) -> None:
        """Take a step."""
        self.step += 1
        with self.sections.step(self.step):
            self.loop.take_step(self.step)

    def weights(self) -> torch.Tensor:
        """Return all weights."""
        parameters = self.loop.policy.parameters()
        return torch.cat([p.detach().flatten() for p in parameters])


def compare(title: str, images: bool, batch: int, rounds: int, repeats: int) -> None:
    folder = Path(tempfile.mkdtemp())
    profilers = {
        "off": None,
        "timing": TrainingProfiler(folder / "timing"),
        "summary": TrainingProfiler(folder / "summary", "summary"),
    }
    with ExitStack() as stack:
        runs = {}
        for name, profiler in profilers.items():
            stack.enter_context(Sections(profiler).running(torch.device("cpu")))
            runs[name] = Contestant(profiler, images, batch)
        for _ in range(10):  # of summary, the window of the operators, once
            for run in runs.values():
                run()
        check_equal(title, {name: run.weights() for name, run in runs.items()})
        times = time_in_turns(runs, rounds, repeats=repeats, clock=time.process_time)
    print_rows(title, times, "off")


def compare_empty_steps(rounds: int, repeats: int) -> None:
    """Measure the sections alone: five of them, with nothing inside."""
    profiler = TrainingProfiler(Path(tempfile.mkdtemp()))

    def step(sections: Sections) -> None:
        with sections.step(1):
            for name in ("dataloading", "forward", "backward", "clip", "optimizer"):
                with sections.section(name):
                    pass

    with profiler.running():
        runs = {"off": Sections(), "timing": Sections(profiler)}
        contestants = {n: partial(step, sections) for n, sections in runs.items()}
        clock = time.process_time
        times = time_in_turns(contestants, rounds, repeats=repeats, clock=clock)
    print_rows("an empty step", times, "off")


def main() -> None:
    quick = read_quick(__doc__)
    torch.set_num_threads(1)
    print("Cloning steps, 1 thread; equal weights after ten steps: checked")
    print_head("no profiler")
    compare_empty_steps(*((1, 10) if quick else (31, 500)))
    compare(
        "state, batch 128", False, 4 if quick else 128, *((1, 1) if quick else (31, 20))
    )
    compare(
        "images, batch 32", True, 2 if quick else 32, *((1, 1) if quick else (15, 2))
    )


if __name__ == "__main__":
    main()
