"""The copy is made once per content, completely or not at all."""

from __future__ import annotations

import os

import pytest
from lerobot_folders import FPS, encode_video, record, write_folder

from torchrl_vla.data.lerobot import dataset_cache
from torchrl_vla.data.lerobot.dataset_cache import (
    cached_copy,
    default_cache_folder,
    fingerprint,
)
from torchrl_vla.data.lerobot.folder_layout import LeRobotLayout
from torchrl_vla.schema import SchemaError


@pytest.fixture
def folder(tmp_path):
    recording = record((2, 3), cameras=("front",))
    return write_folder(tmp_path / "push", recording, images="video", files=2)


def files_of(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def test_the_dataset_is_not_written_to(folder, tmp_path):
    before = files_of(folder)
    cached_copy(LeRobotLayout.from_folder(folder), tmp_path / "cache")
    assert files_of(folder) == before


def test_a_second_opening_makes_no_second_copy(folder, tmp_path):
    layout = LeRobotLayout.from_folder(folder)
    copy = cached_copy(layout, tmp_path / "cache")
    before = files_of(copy)
    assert cached_copy(layout, tmp_path / "cache") == copy
    assert files_of(copy) == before
    assert list((tmp_path / "cache").iterdir()) == [copy]


@pytest.mark.parametrize("name", ["data", "videos", "meta"])
def test_a_changed_file_needs_a_new_copy(folder, name):
    before = fingerprint(folder)
    assert fingerprint(folder) == before
    path = sorted(path for path in (folder / name).rglob("*") if path.is_file())[0]
    os.utime(path, ns=(1, 1))
    assert fingerprint(folder) != before


def test_another_folder_of_equal_content_has_its_own_copy(folder, tmp_path):
    other = tmp_path / "other"
    folder.rename(other)
    here = fingerprint(other)
    other.rename(folder)
    assert fingerprint(folder) != here


def test_a_build_that_fails_leaves_nothing(folder, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(dataset_cache, "write_videos", fail)
    layout = LeRobotLayout.from_folder(folder)
    with pytest.raises(RuntimeError, match="the disk is full"):
        cached_copy(layout, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_files_of_a_killed_process_are_no_copy(folder, tmp_path, monkeypatch):
    layout = LeRobotLayout.from_folder(folder)
    monkeypatch.setattr(dataset_cache.shutil, "rmtree", lambda *_, **__: None)
    with monkeypatch.context() as patch:
        patch.setattr(dataset_cache, "write_videos", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError, match="division"):
            cached_copy(layout, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 1
    copy = cached_copy(layout, tmp_path / "cache")
    assert (copy / "images/observation.images.front/frame.npy").is_file()


def test_the_copy_of_a_process_that_was_faster_is_used(folder, tmp_path, monkeypatch):
    layout = LeRobotLayout.from_folder(folder)
    write_frames = dataset_cache.write_frames

    def and_meanwhile(layout, unfinished):
        monkeypatch.setattr(dataset_cache, "write_frames", write_frames)
        cached_copy(layout, tmp_path / "cache")
        return write_frames(layout, unfinished)

    monkeypatch.setattr(dataset_cache, "write_frames", and_meanwhile)
    copy = cached_copy(layout, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == [copy]


@pytest.mark.parametrize("n_frames", [1, 2])
def test_a_video_with_too_few_frames_is_refused(folder, tmp_path, n_frames):
    video = folder / "videos/observation.images.front/chunk-000/file-001.mp4"
    images = record((3,)).images["observation.images.front"]
    encode_video(video, images[:n_frames])
    message = (
        f"for frame {n_frames} of episode 1, got the nearest .*: {n_frames} frames"
    )
    with pytest.raises(SchemaError, match=message):
        cached_copy(LeRobotLayout.from_folder(folder), tmp_path / "cache")


def test_a_video_of_another_rate_is_refused(folder, tmp_path):
    video = folder / "videos/observation.images.front/chunk-000/file-001.mp4"
    images = record((3,)).images["observation.images.front"]
    encode_video(video, images, fps=FPS + 1)
    with pytest.raises(
        SchemaError, match=r"at 0.100000 s in .* for frame 1 of episode"
    ):
        cached_copy(LeRobotLayout.from_folder(folder), tmp_path / "cache")


def test_the_default_folder_is_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / "torchrl_vla/lerobot"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / ".cache/torchrl_vla/lerobot"


def test_a_file_that_is_changed_and_keeps_its_size_and_time_needs_a_new_copy(folder):
    path = folder / "meta" / "info.json"
    before, about = fingerprint(folder), path.stat()
    path.write_text(path.read_text().replace('"fps": 10', '"fps": 20'))
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert path.stat().st_size == about.st_size
    assert fingerprint(folder) != before


def test_pictures_in_any_folder_belong_to_the_content(folder):
    (folder / "photos").mkdir()
    before = fingerprint(folder)
    (folder / "photos" / "a.png").write_bytes(b"1")
    assert fingerprint(folder) != before
    (folder / "dangling").symlink_to("/nowhere/notes.txt")
    assert fingerprint(folder) != before


@pytest.mark.parametrize(
    "name",
    ["frames/action.memmap", "instructions.json", "frames/observation/meta.json"],
)
def test_a_copy_of_which_a_file_was_cut_off_is_refused(folder, tmp_path, name):
    layout = LeRobotLayout.from_folder(folder)
    path = cached_copy(layout, tmp_path / "cache") / name
    size = path.stat().st_size // 2
    os.truncate(path, size)
    with pytest.raises(
        SchemaError, match=rf"{name}', got {size}: .* Delete this folder"
    ):
        cached_copy(layout, tmp_path / "cache")
    assert path.stat().st_size == size
