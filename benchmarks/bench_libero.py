"""Execute chunks on LIBERO and draw every step or the decisions.

    OMP_NUM_THREADS=1 LP_NUM_THREADS=0 python benchmarks/bench_libero.py

Both cameras at 128 pixels, a decision every 8 steps, one environment. "stock" is
LIBERO's own, which draws every step; "every step" is LiberoEnv, "on demand" the same
with ``render_on_demand=True``, and "quick" also with ``quick_rendering=True``, whose
pixels are others. The columns are milliseconds of CPU per chunk and steps per
CPU-second.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch
from contest import check_equal, print_head, print_rows, read_quick, time_in_turns
from libero.libero.envs import OffScreenRenderEnv
from torch import Tensor

from torchrl_vla.envs import LiberoEnv, LiberoProtocol, SimulatorOptions
from torchrl_vla.rollout import episode_seeds

CHUNK, CHUNKS = 8, 6
CAMERAS = {"agentview": "agentview", "wrist": "robot0_eye_in_hand"}
SEEDS = torch.tensor(episode_seeds(0, 1, "evaluation"))


class Stock:
    """Step LIBERO's own environment, which draws both cameras at every step."""

    def __init__(self, env: LiberoEnv, size: int) -> None:
        (task,) = env.tasks
        folder = env.provider.folder("bddl_files") / task.suite
        self._env = OffScreenRenderEnv(
            bddl_file_name=str(folder / f"{task.name}.bddl"),
            camera_heights=size,
            camera_widths=size,
        )
        self._env.seed(0)
        self._env.reset()
        self.raw = self._env.set_init_state(env.provider.initial_states(task)[0])

    def play(self, chunk: Tensor) -> None:
        """Execute a chunk."""
        # It takes for granted that no other OpenGL context is current.
        self._env.sim._render_context_offscreen.gl_ctx.make_current()
        for action in chunk.double().numpy():
            self.raw, *_ = self._env.step(action)

    def look(self) -> Tensor:
        """Return the hand's position and the pixels, as one vector."""
        raw = self.raw
        images = [raw[f"{name}_image"][::-1].ravel() for name in CAMERAS.values()]
        seen = [raw["robot0_eef_pos"].astype(np.float32), *images]
        return torch.from_numpy(np.concatenate(seen))


class Ours:
    """Step LiberoEnv, which draws what is read."""

    def __init__(self, env: LiberoEnv) -> None:
        self._env = env
        self._now = env.reset(episode_seeds=SEEDS)

    def play(self, chunk: Tensor) -> None:
        """Execute a chunk."""
        for index, action in enumerate(chunk):
            self._now["action"] = action[None]
            self._now["observation_needed"] = torch.tensor([[index == CHUNK - 1]])
            self._now = self._env.step(self._now)["next"]

    def look(self) -> Tensor:
        """Return the hand's position and the pixels, as one vector."""
        seen = self._now["observation"]
        images = [seen["image", name][0].permute(1, 2, 0).flatten() for name in CAMERAS]
        return torch.cat([seen["state"][0, :3], *images])


class Player:
    """Play the chunks in turn."""

    def __init__(self, env: Stock | Ours) -> None:
        self.env, self._position = env, 0
        generator = torch.Generator().manual_seed(0)
        self._chunks = torch.rand(CHUNKS, CHUNK, 7, generator=generator) * 2 - 1

    def __call__(self) -> None:
        """Execute the next chunk."""
        self.env.play(self._chunks[self._position % CHUNKS])
        self._position += 1


def make_players(size: int) -> dict[str, Player]:
    def make(on_demand: bool, quick: bool = False) -> LiberoEnv:
        return LiberoEnv(
            "object",
            [6],
            image_size=size,
            protocol=LiberoProtocol(settle_steps=0, quick_rendering=quick),
            options=SimulatorOptions(render_on_demand=on_demand),
        )

    env = make(on_demand=False)
    return {
        "stock": Player(Stock(env, size)),
        "every step": Player(Ours(env)),
        "on demand": Player(Ours(make(on_demand=True))),
        "quick": Player(Ours(make(on_demand=True, quick=True))),
    }


def main() -> None:
    quick = read_quick(__doc__)
    torch.set_num_threads(1)
    size = 16 if quick else 128
    players = make_players(size)
    same = {name: player for name, player in players.items() if name != "quick"}
    for _ in range(1 if quick else 3):
        for player in players.values():
            player()
        check_equal("LIBERO", {name: p.env.look() for name, p in same.items()})
    hands = {name: player.env.look()[:3] for name, player in players.items()}
    check_equal("LIBERO, the hand", hands)
    print(f"chunks of {CHUNK} on libero_object, 2 cameras of {size} px, 1 thread")
    print_head("on demand", "steps/s")
    times = time_in_turns(players, 1 if quick else 5, clock=time.process_time)
    columns = {
        name: (f"{CHUNK / statistics.median(spent) * 1e3:.0f}",)
        for name, spent in times.items()
    }
    print_rows("object, butter", times, "on demand", columns)


if __name__ == "__main__":
    main()
