from __future__ import annotations

import struct
import sys
import zlib

import av
import pytest
import torch

from torchrl_vla.envs import TabletopEnv
from torchrl_vla.evaluation import (
    Recorder,
    contact_sheet,
    evaluate,
    write_png,
    write_video,
)
from torchrl_vla.rollout import episode_seeds
from torchrl_vla.schema import MissingExtraError


def read_png(data):
    """A decoder for what we write: 8-bit RGB whose lines have no filter."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    pixels, position = b"", 8
    while position < len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        kind = data[position + 4 : position + 8]
        body = data[position + 8 : position + 8 + length]
        (checksum,) = struct.unpack(">I", data[position + 8 + length :][:4])
        assert checksum == zlib.crc32(kind + body)
        if kind == b"IHDR":
            width, height, depth, color, *_ = struct.unpack(">IIBBBBB", body)
            assert (depth, color) == (8, 2)
        if kind == b"IDAT":
            pixels += zlib.decompress(body)
        position += 12 + length
    rows = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(height, -1)
    assert (rows[:, 0] == 0).all()
    return rows[:, 1:].reshape(height, width, 3).permute(2, 0, 1)


def test_a_png_holds_the_image(tmp_path):
    image = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    path = write_png(tmp_path / "image.png", image)
    assert torch.equal(read_png(path.read_bytes()), image)


@pytest.mark.parametrize(
    "image", [torch.zeros(3, 4, 4), torch.zeros(4, 4, 3, dtype=torch.uint8)]
)
def test_what_is_no_rgb_image_is_refused(image, tmp_path):
    with pytest.raises(ValueError, match=r"expected uint8 \[3, h, w\], got torch"):
        write_png(tmp_path / "x.png", image)


def gray_video(*levels):
    return torch.stack([torch.full((3, 2, 2), v, dtype=torch.uint8) for v in levels])


def test_a_strip_goes_from_the_first_frame_to_the_last():
    strip = contact_sheet([gray_video(*range(0, 110, 10)), gray_video(7, 9)], columns=3)
    assert strip.shape == (3, 12, 18)  # two white pixels around each image
    image_rows, image_columns = (3, 9), (3, 9, 15)
    levels = [[int(strip[0, y, x]) for x in image_columns] for y in image_rows]
    assert levels == [[0, 50, 100], [7, 7, 9]]
    assert (strip[:, :2] == 255).all()


def test_a_recorder_keeps_every_step_of_the_episodes_it_was_asked_for():
    env, recorder = TabletopEnv(3, image_size=16), Recorder(2)
    result = evaluate(env, env.make_expert(), 5, recorder=recorder, progress=False)
    lengths = [episode.length for episode in result.episodes[:2]]
    assert [len(video) for video in recorder.videos] == lengths


def test_a_recorder_shows_the_episode_and_not_its_neighbor():
    videos = []
    for num_envs in (1, 3):
        env, recorder = TabletopEnv(num_envs, image_size=16), Recorder(2)
        evaluate(env, env.make_expert(), 3, recorder=recorder, progress=False)
        videos.append(recorder.videos)
    for alone, beside in zip(*videos):
        assert torch.equal(alone, beside)


def test_a_video_has_the_frames_the_size_and_the_rate(tmp_path):
    video = torch.zeros(9, 3, 32, 48, dtype=torch.uint8)
    video[:, 0] = 200
    path = write_video(tmp_path / "video.mp4", video, rate_hz=5.0)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [
            frame.to_ndarray(format="rgb24") for frame in container.decode(stream)
        ]
        assert stream.average_rate == 5
    assert len(frames) == 9
    assert frames[0].shape == (32, 48, 3)
    red, green, blue = frames[0].reshape(-1, 3).mean(0)
    assert red > 190  # compression is lossy
    assert max(green, blue) < 10


def test_what_is_no_video_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected uint8 \[T, 3, h, w\], got torch"):
        write_video(tmp_path / "x.mp4", torch.zeros(3, 4, 4, dtype=torch.uint8))


def test_a_video_of_odd_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"an even height and width, got \(15, 16\)"):
        write_video(tmp_path / "x.mp4", torch.zeros(1, 3, 15, 16, dtype=torch.uint8))


def test_a_video_without_its_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"torchrl-vla\[video\]"):
        write_video(tmp_path / "x.mp4", gray_video(1, 2))


@pytest.mark.parametrize(("videos", "columns"), [([], 8), ([gray_video(1)], 1)])
def test_a_strip_needs_a_video_and_two_columns(videos, columns):
    with pytest.raises(ValueError, match=r"at least one video and columns >= 2, got"):
        contact_sheet(videos, columns)


def test_a_recorder_with_another_image_shows_that():
    def camera(env):
        return env._image

    env, recorder = TabletopEnv(2, image_size=16), Recorder(1, camera)
    evaluate(env, env.make_expert(), 2, recorder=recorder, progress=False)
    seeds = torch.tensor(episode_seeds(0, 2, "evaluation"))
    first = env.reset(episode_seeds=seeds)["observation", "image"][0]
    assert torch.equal(recorder.videos[0][0], first)
