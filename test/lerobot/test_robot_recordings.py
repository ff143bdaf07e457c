"""LeRobot opens what a robot's run recorded, with drops and corrections."""

from __future__ import annotations

import threading

import pytest
import torch
from robot_runs import lerobot_recorder, make_run

from torchrl_vla.runtime import (
    BackgroundRecorder,
    ContinuousRecording,
    CorrectionPolicy,
    TeleoperatorPolicy,
    run_strategy,
)
from torchrl_vla.testing import FakeTeleoperator

pytestmark = pytest.mark.lerobot


class BlockedWriter:
    """A LeRobot writer that writes nothing before it is let go."""

    def __init__(self, writer):
        self.writer, self.go_on = writer, threading.Event()

    def __getattr__(self, name):
        return getattr(self.writer, name)

    def add(self, step):
        self.go_on.wait(60)
        self.writer.add(step)


def test_lerobot_opens_a_recording_with_drops_and_corrections(tmp_path):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    run, robot = make_run(duration_s=3.0, image_size=32)
    person = FakeTeleoperator(
        robot.metadata, lambda call: torch.ones(2) if 3 <= call < 5 else None
    )
    by_hand = TeleoperatorPolicy(person, rate_hz=10.0)
    run.policy = CorrectionPolicy(run.policy, by_hand)
    inner = lerobot_recorder(tmp_path / "data", run, ["is_intervention"])
    writer = BlockedWriter(inner.writer)
    recorder = BackgroundRecorder(writer, capacity=12)

    def let_go(step):
        if len(robot.sent) == 30:
            writer.go_on.set()

    run.listeners.append(let_go)
    run_strategy(ContinuousRecording(recorder, 1.0), run)
    assert recorder.added + recorder.dropped == 30
    assert recorder.dropped >= 17
    dataset = LeRobotDataset("local/run", root=tmp_path / "data")
    assert len(dataset) == recorder.added
    assert dataset.fps == 10
    sent = torch.stack([action for _, action in robot.sent])
    seen = torch.stack([dataset[i]["action"] for i in range(12)])
    torch.testing.assert_close(seen, sent[:12])
    flags = [bool(dataset[i]["is_intervention"]) for i in range(12)]
    assert flags == [i in (3, 4) for i in range(12)]
    assert dataset[0]["observation.images.front"].shape == (3, 32, 32)
    assert dataset[0]["task"] == "wave"
