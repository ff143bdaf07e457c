"""Steps per second of the tabletop and of chunk execution, by device.

    python benchmarks/gpu_tabletop.py --device cuda --out rows.json

"expert" is the environment with its scripted expert, "executor" with a policy behind a
chunk executor, environment and policy on one device; and an
environment on the CPU with a policy on the device. A step of N environments counts N.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from gpu_rows import Rows, device_clock, read_arguments, tabletop_policy
from torchrl.envs import (
    Compose,
    DeviceCastTransform,
    EnvBase,
    InitTracker,
    TransformedEnv,
)

from torchrl_vla.envs import TabletopEnv
from torchrl_vla.execution import MultiStepActorWrapper

CHUNK = 8


def measure(
    rows: Rows,
    env: EnvBase,
    actor: Callable,
    device: str,
    steps: int,
    repeats: int,
    **cells: object,
) -> None:
    """Add the steps per second of rollouts."""
    clock, rates = device_clock(device), []
    with torch.no_grad():
        for number in range(-1, repeats):
            start = clock()
            env.rollout(steps, actor, break_when_any_done=False)
            if number >= 0:
                rates.append(steps * env.batch_size.numel() / (clock() - start))
    rows.add(
        "tabletop",
        **cells,
        envs=env.batch_size.numel(),
        steps_per_s=round(statistics.median(rates)),
        least=round(min(rates)),
        most=round(max(rates)),
    )


def main() -> None:
    given = read_arguments(__doc__)
    rows = Rows(given.out)
    counts = (2, 4) if given.rehearse else (64, 256, 1024)
    steps, repeats = (CHUNK, 1) if given.rehearse else (5 * CHUNK, 3)
    policy = tabletop_policy("tokens", CHUNK, 128)
    places = dict.fromkeys(["cpu", given.device])
    for count in counts:
        for place in places:
            cells = {"environment": place, "policy": place}
            with rows.trial("tabletop", envs=count, **cells):
                env = TabletopEnv(count, image_size=32, seed=0).to(place)
                expert = env.make_expert(noise=0.3, seed=0)
                sizes = (place, steps, repeats)
                measure(rows, env, expert, *sizes, **cells | {"policy": "expert"})
                env = TransformedEnv(env, InitTracker())
                actor = MultiStepActorWrapper(policy.to(place), replan_interval=CHUNK)
                measure(rows, env, actor, *sizes, **cells)
        cells = {"environment": "cpu", "policy": given.device}
        with rows.trial("tabletop", envs=count, **cells):
            env = moved(TabletopEnv(count, image_size=32, seed=0), given.device)
            actor = MultiStepActorWrapper(
                policy.to(given.device), replan_interval=CHUNK
            )
            measure(rows, env, actor, given.device, steps, repeats, **cells)


def moved(env: EnvBase, device: str) -> EnvBase:
    """Let an environment on the CPU read and write tensors of a device."""
    cast = DeviceCastTransform(torch.device(device), orig_device=torch.device("cpu"))
    return TransformedEnv(env, Compose(cast, InitTracker()))


if __name__ == "__main__":
    main()
