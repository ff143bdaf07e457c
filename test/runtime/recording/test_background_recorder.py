from __future__ import annotations

import threading
import time

import pytest
import torch
from robot_runs import MemoryWriter
from tensordict import TensorDict

from torchrl_vla.runtime import BackgroundRecorder


def frame(number: int = 0) -> TensorDict:
    return TensorDict({"action": torch.tensor([float(number)])})


def test_frames_and_episodes_reach_the_writer_in_their_order():
    writer = MemoryWriter()
    with BackgroundRecorder(writer) as recorder:
        for number in range(5):
            assert recorder.add(frame(number))
            if number in (1, 4):
                recorder.end_episode()
    assert writer.actions() == [[0.0, 1.0], [2.0, 3.0, 4.0]]
    assert writer.ended_as == "closed"
    assert (recorder.added, recorder.dropped) == (5, 0)


def test_frames_beyond_the_capacity_are_dropped_and_counted():
    """The writer is stuck on the first frame: three more fit."""
    begun, go_on = threading.Event(), threading.Event()

    def block():
        begun.set()
        go_on.wait(10)

    writer = MemoryWriter(block)
    recorder = BackgroundRecorder(writer, capacity=4)
    recorder.add(frame(0))
    begun.wait(10)
    taken = [recorder.add(frame(number)) for number in range(1, 8)]
    assert taken == [True] * 3 + [False] * 4
    assert recorder.dropped == recorder.dropped_of_episode == 4
    recorder.end_episode()  # never dropped
    go_on.set()
    recorder.flush()
    assert writer.actions() == [[0.0, 1.0, 2.0, 3.0]]
    assert recorder.dropped_of_episode == 0
    recorder.close()


def test_adding_does_not_wait_for_a_slow_writer():
    writer = MemoryWriter(lambda: time.sleep(0.2))
    recorder = BackgroundRecorder(writer, capacity=3)
    begun_s = time.monotonic()
    for number in range(200):
        recorder.add(frame(number))
    assert time.monotonic() - begun_s < 20  # of 40 s, if it waited
    assert recorder.dropped > 0
    recorder.release()


def test_flush_waits_for_the_disk():
    writer = MemoryWriter(lambda: time.sleep(0.01))
    recorder = BackgroundRecorder(writer)
    for number in range(5):
        recorder.add(frame(number))
    recorder.end_episode()
    recorder.flush()
    assert recorder.num_episodes == 1
    assert len(writer.episodes[0]) == 5
    recorder.close()


def test_an_error_of_the_writer_is_raised_by_the_next_call():
    def fail():
        raise OSError("no space left")

    recorder = BackgroundRecorder(MemoryWriter(fail))
    recorder.add(frame())
    with pytest.raises(OSError, match="no space left"):
        recorder.flush()
    with pytest.raises(OSError, match="no space left"):
        recorder.add(frame())
    with pytest.raises(OSError, match="no space left"):
        recorder.close()
    recorder.release()
    assert recorder.writer.ended_as == "released"


def test_an_error_in_the_block_leaves_the_dataset_to_be_resumed():
    writer = MemoryWriter()
    with pytest.raises(ZeroDivisionError), BackgroundRecorder(writer) as recorder:
        recorder.add(frame(1 // recorder.dropped))
    assert writer.ended_as == "released"


def test_an_episode_that_was_not_ended_is_ended_by_close():
    writer = MemoryWriter()
    recorder = BackgroundRecorder(writer)
    recorder.add(frame(7))
    recorder.close()
    assert writer.actions() == [[7.0]]


def test_without_an_episode_the_dataset_is_left():
    writer = MemoryWriter()
    BackgroundRecorder(writer).close()
    assert writer.ended_as == "released"


def test_a_discarded_episode_takes_the_waiting_frames_with_it():
    writer = MemoryWriter()
    with BackgroundRecorder(writer) as recorder:
        recorder.add(frame(1))
        recorder.discard_episode()
        recorder.add(frame(2))
    assert writer.actions() == [[2.0]]


def test_a_capacity_below_one_is_refused():
    with pytest.raises(ValueError, match="capacity >= 1, got 0"):
        BackgroundRecorder(MemoryWriter(), capacity=0)
