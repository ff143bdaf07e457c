"""Frames by time, whatever the key frames, against decoding from the start."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lerobot_folders import FPS, encode_video, record

from torchrl_vla.data import decode_video
from torchrl_vla.data.lerobot.video_decoder import (
    DECODERS,
    VideoIndex,
    decoder_name,
    torchcodec_loads,
)
from torchrl_vla.schema import SchemaError

N = 23
PICTURES = record((N,)).images["observation.images.front"]
LOADED = ["pyav"] + (["torchcodec"] if torchcodec_loads() else [])


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "front.mp4"
    encode_video(path, PICTURES, gop=5)
    return path


def test_the_index_has_every_frame_in_the_order_of_showing(video):
    index = VideoIndex.from_file(video)
    assert np.allclose(index.times_s, np.arange(N) / FPS)
    assert index.is_key.nonzero()[0].tolist() == [0, 5, 10, 15, 20]


def test_the_nearest_frame_is_found_and_how_far_it_is(video):
    numbers, late_s = VideoIndex.from_file(video).find(np.array([0.0, 0.32, 0.38, 9.0]))
    assert numbers.tolist() == [0, 3, 4, N - 1]
    assert late_s == pytest.approx([0.0, 0.02, 0.02, 9.0 - (N - 1) / FPS])


@pytest.mark.parametrize("decoder", LOADED)
def test_frames_come_in_the_order_of_the_times(video, decoder):
    numbers = [7, 0, 22, 7, 8, 3]
    images = decode_video(video, [n / FPS for n in numbers], decoder=decoder)
    expected = torch.from_numpy(PICTURES[numbers]).permute(0, 3, 1, 2)
    assert torch.equal(images, expected)


@pytest.mark.parametrize("decoder", LOADED)
def test_an_open_video_decodes_frames_in_any_order(video, decoder):
    reads = st.lists(st.sets(st.integers(0, N - 1), min_size=1), min_size=1, max_size=4)
    opened = DECODERS[decoder](video, VideoIndex.from_file(video))

    @settings(max_examples=60, deadline=None)
    @given(reads)
    def check(sets):
        for numbers in map(sorted, sets):
            for number, pixels in zip(numbers, opened.read(numbers), strict=True):
                assert (pixels == PICTURES[number]).all()

    check()
    opened.close()


def test_pyav_does_not_jump_to_a_frame_that_is_near(video):
    opened = DECODERS["pyav"](video, VideoIndex.from_file(video))
    jumps = []
    jump = opened._jump
    opened._jump = lambda place: (jumps.append(place), jump(place))
    list(opened.read([6, 8]))
    list(opened.read([9, 12]))  # 10 is a key frame, and the next one anyway
    list(opened.read([21]))
    assert jumps == [1, 4]


def test_a_file_that_is_no_video_is_refused(tmp_path):
    path = tmp_path / "front.mp4"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(SchemaError, match=r"expected a finished video in .*front.mp4"):
        VideoIndex.from_file(path)


def test_a_video_that_was_cut_off_is_refused(video, tmp_path):
    path = tmp_path / "cut.mp4"
    path.write_bytes(video.read_bytes()[:-500])
    with pytest.raises(SchemaError, match=r"expected a finished video in .*cut.mp4"):
        VideoIndex.from_file(path)


def test_a_frame_that_the_decoder_does_not_show_is_refused(video):
    index = VideoIndex.from_file(video)
    index.pts[4] += 1  # between two frames
    opened = DECODERS["pyav"](video, index)
    with pytest.raises(SchemaError, match=r"expected frame 4 in .*no image for it"):
        list(opened.read([4]))
    assert (next(opened.read([5])) == PICTURES[5]).all()


def test_a_damaged_file_is_refused(video, tmp_path):
    path = tmp_path / "damaged.mp4"
    path.write_bytes(video.read_bytes())
    index = VideoIndex.from_file(path)
    with path.open("r+b") as file:
        file.seek(200)
        file.write(bytes(10_000))
    with pytest.raises(SchemaError, match=r"frame 2 in .*fetch the dataset again"):
        list(DECODERS["pyav"](path, index).read([2]))


def test_the_decoder_is_torchcodec_where_it_loads():
    assert decoder_name(None) == LOADED[-1]
    assert decoder_name("pyav") == "pyav"


def test_an_unknown_decoder_is_refused():
    with pytest.raises(ValueError, match=r"a decoder of \['pyav', 'torchcodec'\]"):
        decoder_name("opencv")


def test_torchcodec_is_refused_where_it_does_not_load(monkeypatch):
    monkeypatch.setattr(
        "torchrl_vla.data.lerobot.video_decoder.torchcodec_loads", lambda: False
    )
    with pytest.raises(ValueError, match="expected torchcodec to load"):
        decoder_name("torchcodec")
