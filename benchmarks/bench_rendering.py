"""Execute chunks in MetaWorld and draw every step, the decisions, or nothing.

    OMP_NUM_THREADS=1 python benchmarks/bench_rendering.py

All step the same simulators through the same chunks of random actions. TorchRL's
``MultiAction`` draws every step, as ours does by default; "on demand" is ours in an
environment made with ``render_on_demand=True``; "no images" has no cameras at all, and
nobody who draws can be faster. The columns are milliseconds per outer step (K base
steps of every row), base steps per second, and the gain if a chunk cost its physics
and one image and nothing else.
"""

from __future__ import annotations

import statistics

import torch
from contest import check_equal, print_head, print_rows, read_quick, time_in_turns
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase, Transform, TransformedEnv
from torchrl.envs.transforms import MultiAction as PeerMultiAction

from torchrl_vla.envs import MetaWorldEnv, SimulatorOptions
from torchrl_vla.execution import MultiAction

#: Cameras, image size and rounds.
VIEWS = [
    (("corner2",), 64, 9),
    (("corner2",), 480, 5),
    (("corner2", "topview", "gripperPOV"), 480, 3),
]
QUICK_VIEWS = [(("corner2",), 8, 2)]
TASK, ACTION_DIM = "reach", 4
CHECKED_CHUNKS = 3


class Player:
    """Step one environment through chunks, from the same seeds as the others."""

    def __init__(self, env: EnvBase, chunks: Tensor) -> None:
        self.env, self.chunks, self.position = env, chunks, 0
        rows = env.batch_size[0]
        self.now = env.reset(episode_seeds=torch.arange(rows))

    def __call__(self) -> TensorDictBase:
        """Execute the next chunk."""
        chunk = self.chunks[self.position % len(self.chunks)]
        self.position += 1
        inputs = self.now.exclude("reward", "executed_steps", "is_executed")
        self.now = self.env.step(inputs.set("action_chunk", chunk))["next"]
        return self.now

    def look(self) -> Tensor:
        """Return the pixels and numbers of a decision point, as one vector."""
        shown = self().get("observation")
        keys = sorted(shown.keys(True, True), key=str)
        return torch.cat([shown.get(key).flatten().double() for key in keys])


ON_DEMAND = SimulatorOptions(render_on_demand=True)


def make_players(
    cameras: tuple[str, ...], size: int, horizon: int, rows: int
) -> dict[str, Player]:
    generator = torch.Generator().manual_seed(0)
    chunks = torch.rand(8, rows, horizon, ACTION_DIM, generator=generator) * 2 - 1

    def make(transform: Transform, **options: object) -> Player:
        base = MetaWorldEnv(
            TASK,
            num_envs=rows,
            image_size=size,
            max_steps=1_000_000,
            stop_on_success=False,
            **options,
        )
        return Player(TransformedEnv(base, transform), chunks)

    peer = PeerMultiAction(stack_rewards=False, chunk_key="action_chunk")
    return {
        "TorchRL": make(peer, cameras=cameras),
        "every step": make(MultiAction(horizon), cameras=cameras),
        "on demand": make(MultiAction(horizon), cameras=cameras, options=ON_DEMAND),
        "no images": make(MultiAction(horizon)),
    }


def compare(
    cameras: tuple[str, ...], size: int, rounds: int, horizon: int, rows: int
) -> None:
    players = make_players(cameras, size, horizon, rows)
    title = f"{len(cameras)} x {size} px, K={horizon}"
    drawing = {name: p for name, p in players.items() if name != "no images"}
    for _ in range(CHECKED_CHUNKS):
        check_equal(title, {name: player.look() for name, player in drawing.items()})
    times = time_in_turns(players, rounds)
    columns = {
        name: (f"{rows * horizon / statistics.median(spent) * 1e3:.0f}", "")
        for name, spent in times.items()
    }
    drawn, bare = (statistics.median(times[n]) for n in ("every step", "no images"))
    at_best = drawn / (bare + (drawn - bare) / horizon)
    columns["every step"] = (columns["every step"][0], f"{at_best:.1f}")
    print_rows(title, times, "on demand", columns)
    for player in players.values():
        player.env.close()


def main() -> None:
    quick = read_quick(__doc__)
    torch.set_num_threads(1)
    rows = 2 if quick else 8
    print(f"chunks in MetaWorld {TASK}, {rows} rows, 1 thread")
    print_head("on demand", "steps/s", "at best")
    with torch.no_grad():
        for view in QUICK_VIEWS if quick else VIEWS:
            for horizon in (2,) if quick else (8, 16):
                compare(*view, horizon, rows)


if __name__ == "__main__":
    main()
