"""A recording that was cut off, wherever it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lerobot_steps import METADATA, TABLE, files_below, make_episode

from torchrl_vla.data import LeRobotDemonstrations, LeRobotWriter
from torchrl_vla.data.lerobot_writer import (
    dataset_assembly,
    lerobot_writer,
    recording_journal,
)
from torchrl_vla.schema import ExecutionError, MissingKeyError, SchemaError

SUPPORT = Path(__file__).parents[2] / "support"
KILLED_IN_THE_FOURTH_EPISODE = """
import os, signal, sys
from lerobot_steps import METADATA, TABLE, make_episode
from torchrl_vla.data import LeRobotWriter
from torchrl_vla.data.lerobot_writer import dataset_assembly

folder, where = sys.argv[1:]
with LeRobotWriter(folder, metadata=METADATA, instructions=TABLE) as writer:
    for number in range(4):
        for k, step in enumerate(make_episode(3 + number, number=number).unbind(0)):
            if (where, number, k) == ("recording", 3, 2):
                os.kill(os.getpid(), signal.SIGKILL)
            writer.add(step)
        writer.end_episode()
    # Data and videos are there, meta/info.json is not.
    dataset_assembly.write_tasks = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
"""


def episodes(count: int) -> torch.Tensor:
    return torch.cat([make_episode(3 + n, number=n) for n in range(count)])


def read(folder, tmp_path):
    dataset = LeRobotDemonstrations.from_folder(folder, cache_folder=tmp_path / "cache")
    return dataset.replay_buffer(1)[torch.arange(len(dataset))]


def begin(folder, count=2, **options) -> LeRobotWriter:
    options.setdefault("images", "png")
    opened = LeRobotWriter(folder, metadata=METADATA, instructions=TABLE, **options)
    for number in range(count):
        opened.add_episode(make_episode(3 + number, number=number))
    return opened


@pytest.mark.parametrize(("where", "count"), [("recording", 3), ("closing", 4)])
def test_a_process_that_is_killed_loses_no_finished_episode(tmp_path, where, count):
    pytest.importorskip("pyarrow")  # the killed process needs it
    folder = tmp_path / "a"
    path = os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", KILLED_IN_THE_FOURTH_EPISODE, str(folder), where]
    ended = subprocess.run(command, env={**os.environ, "PYTHONPATH": path})
    assert ended.returncode == -signal.SIGKILL
    assert "unfinished recording" in (folder / "UNFINISHED.txt").read_text()
    with pytest.raises(SchemaError, match=r"got an unfinished recording\. Finish it"):
        read(folder, tmp_path)
    resumed = LeRobotWriter.resume(folder, instructions=TABLE)
    assert (resumed.num_episodes, resumed.num_frames) == (count, 0)
    resumed.add_episode(make_episode(3 + count, number=count))
    resumed.close()
    frames, expected = read(folder, tmp_path), episodes(count + 1)
    for key in ("action", ("observation", "state"), "language_instruction"):
        assert torch.equal(frames[key], expected[key]), key
    for camera in METADATA.cameras:
        key = ("observation", "image", camera)
        error = (frames[key].float() - expected[key].float()).abs().mean()
        assert error < 16, "not that episode's images"
    assert "UNFINISHED.txt" not in files_below(folder)


def test_the_instructions_in_the_note_work(tmp_path):
    begin(tmp_path / "a").release()
    note = (tmp_path / "a" / "UNFINISHED.txt").read_text()
    code = "\n".join(line.strip() for line in note.splitlines() if "    " in line)
    exec(code, {"FOLDER": tmp_path / "a"})
    frames = read(tmp_path / "a", tmp_path)
    assert torch.equal(frames["action"], episodes(2)["action"])


STEPS_OF_CLOSING = ["_write_data", "_write_episodes", "write_tasks", "write_json"]


@pytest.mark.parametrize("step", STEPS_OF_CLOSING)
def test_closing_that_was_cut_off_can_be_done_again(tmp_path, monkeypatch, step):
    def cut_off(*args, **options):
        raise KeyboardInterrupt

    opened = begin(tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setattr(dataset_assembly, step, cut_off)
        with pytest.raises(KeyboardInterrupt):
            opened.close()
    assert not (tmp_path / "a" / "meta" / "info.json").exists()
    opened.release()
    LeRobotWriter.resume(tmp_path / "a").close()
    frames = read(tmp_path / "a", tmp_path)
    assert torch.equal(frames["action"], episodes(2)["action"])


def test_an_interrupted_commit_leaves_no_episode(tmp_path, monkeypatch):
    def cut_off(*args):
        raise KeyboardInterrupt

    opened = begin(tmp_path / "a", 1)
    monkeypatch.setattr(recording_journal, "commit_folder", cut_off)
    with pytest.raises(KeyboardInterrupt):
        opened.add_episode(make_episode(4, number=1))
    opened._journal._lock.release()  # as when the process ends
    monkeypatch.undo()
    resumed = LeRobotWriter.resume(tmp_path / "a", instructions=TABLE)
    assert resumed.num_episodes == 1
    resumed.add_episode(make_episode(4, number=1))
    resumed.close()
    frames = read(tmp_path / "a", tmp_path)
    assert torch.equal(frames["action"], episodes(2)["action"])


def test_a_dataset_that_only_had_to_clear_up_is_cleared_up(tmp_path, monkeypatch):
    opened = begin(tmp_path / "a")
    monkeypatch.setattr(lerobot_writer.Journal, "finish", lambda self: None)
    opened.close()
    opened._journal._lock.release()
    monkeypatch.undo()
    with pytest.raises(FileExistsError, match=r"got a finished dataset\. Open it"):
        LeRobotWriter.resume(tmp_path / "a")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["data", "meta"]
    frames = read(tmp_path / "a", tmp_path)
    assert torch.equal(frames["action"], episodes(2)["action"])


def test_an_error_while_recording_leaves_a_recording_that_can_be_resumed(tmp_path):
    def record():
        with begin(tmp_path / "a") as opened:
            opened.add(make_episode(1)[0])
            opened.add(make_episode(1).exclude("action")[0])

    with pytest.raises(MissingKeyError, match=r"expected \['action'\] in the step"):
        record()
    resumed = LeRobotWriter.resume(tmp_path / "a")
    assert resumed.num_episodes == 2
    resumed.release()


def test_a_resumed_recording_keeps_its_settings_and_its_schema(tmp_path):
    begin(tmp_path / "a", 1, images="video", extra_keys=[("next", "reward")]).release()
    resumed = LeRobotWriter.resume(tmp_path / "a", instructions=TABLE)
    with pytest.raises(SchemaError, match=r"expected shape \[2\] at 'action'"):
        resumed.add(make_episode(1).set("action", torch.zeros(1, 3))[0])
    resumed.add_episode(make_episode(4, number=1))
    resumed.close()
    assert len(list((tmp_path / "a").rglob("*.mp4"))) == 2
    assert len(read(tmp_path / "a", tmp_path)) == 7


def test_a_second_writer_is_refused_while_the_first_records(tmp_path):
    opened = begin(tmp_path / "a")
    with pytest.raises(FileExistsError, match=r"an unfinished recording\. Continue"):
        LeRobotWriter(tmp_path / "a", metadata=METADATA)
    with pytest.raises(ExecutionError, match="got one that another writer holds"):
        LeRobotWriter.resume(tmp_path / "a")
    opened.close()


def test_a_folder_with_other_contents_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"got \['notes.txt'\]. Choose another"):
        LeRobotWriter(tmp_path, metadata=METADATA)
    with pytest.raises(FileNotFoundError, match=r"an unfinished recording.*notes.txt"):
        LeRobotWriter.resume(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"an unfinished recording.*got nothing"
    ):
        LeRobotWriter.resume(tmp_path / "nowhere")


def test_a_journal_with_a_missing_episode_is_refused(tmp_path):
    begin(tmp_path / "a").release()
    episode = tmp_path / "a" / "recording" / "episode-000000"
    episode.rename(tmp_path / "elsewhere")
    with pytest.raises(SchemaError, match=r"expected 'episode-000000' in .*000001"):
        LeRobotWriter.resume(tmp_path / "a")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("settings.json", "{", "expected JSON in '.*settings.json'"),
        ("settings.json", '{"fps": 0}', "expected 'metadata' in '.*settings.json'"),
        ("episode-000000/episode.json", "[]", "an object in '.*episode.json'"),
        ("episode-000000/frames.parquet", "PAR1", "a finished parquet file in '.*"),
    ],
)
def test_a_damaged_file_of_a_recording_is_named(tmp_path, name, text, message):
    writer = LeRobotWriter(
        tmp_path / "a", metadata=METADATA, instructions=TABLE, images="png"
    )
    writer.add_episode(make_episode(2))
    writer.release()
    path = tmp_path / "a" / "recording" / name
    whole = path.read_bytes()
    path.write_text(text)
    for _ in range(2):  # the first releases the lock
        with pytest.raises(SchemaError, match=message):
            finish(tmp_path / "a")
    path.write_bytes(whole)
    finish(tmp_path / "a")
    assert (tmp_path / "a" / "meta" / "info.json").is_file()


def finish(folder):
    writer = LeRobotWriter.resume(folder)
    try:
        writer.close()
    finally:
        writer.release()


def test_a_camera_of_a_recording_leads_to_no_file_outside(tmp_path):
    writer = LeRobotWriter(
        tmp_path / "a", metadata=METADATA, instructions=TABLE, images="png"
    )
    writer.add_episode(make_episode(2))
    writer.release()
    path = tmp_path / "a" / "recording" / "episode-000000" / "episode.json"
    text = path.read_text()
    path.write_text(text.replace("observation.images.", "observation.images./../../"))
    with pytest.raises(SchemaError, match=r"a plain name, .* for a feature in"):
        LeRobotWriter.resume(tmp_path / "a")
