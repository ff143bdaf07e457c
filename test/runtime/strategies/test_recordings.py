from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from robot_runs import MemoryWriter, lerobot_recorder, make_run, steady

from torchrl_vla.data import LeRobotDemonstrations, LeRobotWriter
from torchrl_vla.runtime import (
    BackgroundRecorder,
    ContinuousRecording,
    CorrectionPolicy,
    CorrectionRecording,
    EpisodicRecording,
    HighlightRecording,
    MonotonicClock,
    TeleoperatorPolicy,
    run_strategy,
)
from torchrl_vla.testing import FakeTeleoperator

ROOT = Path(__file__).parents[3]


def test_episodes_are_recorded_again_on_a_key_and_counted():
    """At 10 Hz, 0.5 s an episode: the second one is recorded again at its 3rd step."""
    saved = []
    run, robot = make_run(duration_s=60.0, keys={5 + 2: ["rerecord"]})
    writer = MemoryWriter()
    strategy = EpisodicRecording(
        BackgroundRecorder(writer), 3, episode_s=0.5, on_saved=saved.append
    )
    run_strategy(strategy, run)
    assert writer.actions() == [
        [0.00, 0.01, 0.02, 0.03, 0.04],
        [0.08, 0.09, 0.10, 0.11, 0.12],
        [0.13, 0.14, 0.15, 0.16, 0.17],
    ]
    assert (strategy.finished, strategy.rerecorded, saved) == (3, 1, [1, 2, 3])
    assert writer.ended_as == "closed"
    assert len(robot.sent) == 18


def test_the_pause_between_episodes_sends_nothing_and_a_key_ends_it():
    """Keys: 5 steps of an episode, then the pause; its third tick is told to end."""
    run, robot = make_run(duration_s=60.0, keys={7: ["success"]})
    writer = MemoryWriter()
    strategy = EpisodicRecording(
        BackgroundRecorder(writer), 2, episode_s=0.5, reset_s=5.0
    )
    run_strategy(strategy, run)
    instants = [at_s for at_s, _ in robot.sent]
    assert len(instants) == 10
    assert instants[5] - instants[4] == pytest.approx(0.1 + 2 * 0.1, abs=0.11)


def test_an_episode_that_is_cut_off_by_quit_is_kept():
    run, _ = make_run(keys={3: ["quit"]})
    writer = MemoryWriter()
    run_strategy(EpisodicRecording(BackgroundRecorder(writer), 3), run)
    assert writer.actions() == [[0.0, 0.01, 0.02, 0.03]]


def test_a_continuous_recording_is_cut_by_length_and_told_of_in_groups():
    told = []
    run, _ = make_run(duration_s=10.0)
    writer = MemoryWriter()
    strategy = ContinuousRecording(
        BackgroundRecorder(writer), 1.5, every=2, on_saved=told.append
    )
    run_strategy(strategy, run)
    assert [len(episode) for episode in writer.episodes] == [15] * 6 + [10]
    assert [x for episode in writer.actions() for x in episode] == [
        round((i % 100) / 100, 4) for i in range(100)
    ]
    assert told[-1] == 6
    assert set(told) <= {2, 4, 6}


def test_a_highlight_is_exactly_the_last_30_seconds_and_what_follows():
    """At 10 Hz: saved at 40 s, ended at 42 s."""
    run, _ = make_run(
        duration_s=50.0,
        keys={399: ["save"], 419: ["save"]},
        script=lambda call: torch.full((2,), call / 1000),
    )
    writer = MemoryWriter()
    recorder = BackgroundRecorder(writer, capacity=1000)
    run_strategy(HighlightRecording(recorder, seconds=30), run)
    (actions,) = writer.actions()
    assert actions == [round(i / 1000, 4) for i in range(100, 420)]


def test_without_a_key_a_highlight_recording_keeps_nothing():
    run, _ = make_run(duration_s=5.0)
    writer = MemoryWriter()
    run_strategy(HighlightRecording(BackgroundRecorder(writer)), run)
    assert writer.episodes == []
    assert writer.ended_as == "released"


def correct(call: int) -> torch.Tensor | None:
    """Take over at steps 5 to 7 and 12 to 13."""
    return torch.full((2,), -0.5) if call in (5, 6, 7, 12, 13) else None


@pytest.mark.parametrize("corrections_only", [True, False])
def test_corrections_are_exactly_the_frames_on_which_the_person_acts(corrections_only):
    run, robot = make_run(duration_s=2.0)
    person = FakeTeleoperator(robot.metadata, correct, has_feedback=True)
    person.connect()
    policy = TeleoperatorPolicy(person, rate_hz=10.0)
    run.policy = CorrectionPolicy(run.policy, policy)
    writer = MemoryWriter()
    strategy = CorrectionRecording(
        BackgroundRecorder(writer), corrections_only=corrections_only
    )
    run_strategy(strategy, run)
    acted = {5, 6, 7, 12, 13}
    expected = [-0.5 if i in acted else i / 100 for i in range(20)]
    assert [round(a[0].item(), 4) for _, a in robot.sent] == expected
    assert strategy.corrections == 2
    if corrections_only:
        assert writer.actions() == [[-0.5] * 3, [-0.5] * 2]
    else:
        assert writer.actions() == [expected]
        flags = [frame["is_intervention"].item() for frame in writer.episodes[0]]
        assert flags == [i in acted for i in range(20)]
    # The leader follows the robot while the person's hands are off.
    assert len(person.followed) == 20 - len(acted)
    assert torch.equal(person.followed[-1], torch.full((2,), 0.18))


def test_an_error_leaves_the_finished_episodes_to_be_resumed(tmp_path):
    def script(call):
        if call == 25:
            raise ZeroDivisionError
        return steady(call)

    run, robot = make_run(script=script, image_size=32)
    recorder = lerobot_recorder(tmp_path / "data", run)
    with pytest.raises(ZeroDivisionError):
        run_strategy(EpisodicRecording(recorder, 5, episode_s=1.0), run)
    assert robot.events == ["connect", "disconnect"]
    with LeRobotWriter.resume(tmp_path / "data") as writer:
        assert writer.num_episodes == 2
    dataset = LeRobotDemonstrations.from_folder(
        tmp_path / "data", cache_folder=tmp_path
    )
    assert dataset.num_episodes == 2


class SlowWriter:
    """A LeRobot writer whose every frame takes 200 ms more."""

    def __init__(self, writer):
        self.writer = writer

    def __getattr__(self, name):
        return getattr(self.writer, name)

    def add(self, step):
        time.sleep(0.2)
        self.writer.add(step)


def test_an_encoder_of_200_ms_keeps_the_rate_and_its_drops_are_counted(tmp_path):
    """In real time: 2 s at 30 Hz, of which 10 frames fit into the queue."""
    run, robot = make_run(
        rate_hz=30.0, duration_s=2.0, image_size=32, clock=MonotonicClock()
    )
    recorder = lerobot_recorder(tmp_path / "data", run)
    recorder = BackgroundRecorder(SlowWriter(recorder.writer), capacity=10)
    run_strategy(ContinuousRecording(recorder, 60.0), run)
    statistics = run.robot_env.loop.statistics
    # Medians: a busy machine delays single ticks; an encoder that blocks, all.
    assert statistics.period.p50_ms == pytest.approx(1000 / 30, rel=0.1)
    assert statistics.work.p50_ms < 100
    assert recorder.added + recorder.dropped == len(robot.sent)
    assert recorder.dropped >= 0.5 * len(robot.sent)
    dataset = LeRobotDemonstrations.from_folder(
        tmp_path / "data", cache_folder=tmp_path
    )
    assert dataset.num_episodes == 1
    assert len(dataset) == recorder.added
    assert dataset.metadata.cameras == ("front", "wrist")


PROGRAM = """
import sys
sys.path.insert(0, "test/support")
from pathlib import Path
from robot_runs import lerobot_recorder, make_run
from torchrl_vla.runtime import *
run, _ = make_run(image_size=32)
recorder = lerobot_recorder(Path(sys.argv[1]), run)
say = lambda number: print(number, flush=True)
run_strategy(EpisodicRecording(recorder, 10**6, episode_s=0.3, on_saved=say), run)
"""


@pytest.mark.parametrize("seed", range(2))
def test_a_kill_at_any_moment_loses_no_finished_episode(tmp_path, seed):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "data")],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    for _ in range(2):  # it is under way
        assert process.stdout.readline()
    time.sleep(random.Random(seed).uniform(0.0, 0.3))
    process.send_signal(signal.SIGKILL)
    said = [2, *map(int, process.communicate(timeout=60)[0].split())]
    with LeRobotWriter.resume(tmp_path / "data") as writer:
        assert writer.num_episodes in (said[-1], said[-1] + 1)
    dataset = LeRobotDemonstrations.from_folder(
        tmp_path / "data", cache_folder=tmp_path
    )
    assert dataset.num_episodes >= said[-1]
    assert len(dataset) == 3 * dataset.num_episodes
