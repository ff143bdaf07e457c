from __future__ import annotations

import torch
from robot_runs import make_run

from torchrl_vla.runtime import GateOptions, PlainRollout, recorded_frame, run_strategy


def test_a_frame_holds_what_reached_the_robot_and_not_what_was_asked_for():
    run, robot = make_run(
        duration_s=0.5,
        script=lambda call: torch.full((2,), (call + 1) * 0.3),
        gate=GateOptions("clip", max_step=0.2),
    )
    frames = []
    run.listeners.append(lambda step: frames.append(recorded_frame(step)))
    run_strategy(PlainRollout(), run)
    asked = [0.3, 0.6, 0.9, 1.2, 1.5]
    assert [round(x, 4) for x in map(_first, frames)] != asked
    assert [round(x, 4) for x in map(_first, frames)] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert [a[0].item() for _, a in robot.sent] == list(map(_first, frames))
    assert set(frames[0].keys(True, True)) == {
        "action",
        "language_instruction",
        ("observation", "state"),
        *(("next", key) for key in ("done", "reward", "success")),
        *(("next", key) for key in ("terminated", "truncated")),
    }


def _first(frame) -> float:
    return frame["action"].flatten()[0].item()
