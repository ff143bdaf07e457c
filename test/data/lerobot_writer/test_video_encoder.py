from __future__ import annotations

import av
import numpy as np
import pytest

from torchrl_vla.data.lerobot_writer.video_encoder import (
    EpisodeVideo,
    VideoEncoding,
    VideoFacts,
    concatenate,
)
from torchrl_vla.schema import SchemaError

H264_WITH_B_FRAMES = VideoEncoding("libx264", "yuv420p", {"g": "8", "bf": "2"})
ENCODINGS = [
    VideoEncoding(),
    VideoEncoding.h264(),
    VideoEncoding.lossless(),
    H264_WITH_B_FRAMES,
]


def images(count, size=(32, 48), seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3), np.uint8)


def encode(path, frames, encoding, fps=30):
    video = EpisodeVideo(path, fps=fps, encoding=encoding)
    for frame in frames:
        video.add(frame)
    video.close()
    return path


def decode(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [(f.pts * stream.time_base, f) for f in container.decode(stream)]
    return [time for time, _ in frames], [
        f.to_ndarray(format="rgb24") for _, f in frames
    ]


@pytest.mark.parametrize("size", [(32, 48), (33, 35)])
def test_a_lossless_video_decodes_to_the_original_images(tmp_path, size):
    frames = images(5, size)
    path = encode(tmp_path / "a.mp4", frames, VideoEncoding.lossless())
    np.testing.assert_array_equal(decode(path)[1], frames)


@pytest.mark.parametrize(
    "encoding", ENCODINGS, ids=lambda e: f"{e.codec}-{len(e.options)}"
)
@pytest.mark.parametrize("fps", [7, 30])
def test_videos_put_together_decode_to_the_same_images_at_exact_times(
    tmp_path, encoding, fps
):
    parts = [
        (encode(tmp_path / f"{n}.mp4", images(n, seed=n), encoding, fps), n)
        for n in (5, 1, 12)
    ]
    whole = tmp_path / "whole.mp4"
    concatenate(parts, whole, fps=fps)
    times, frames = decode(whole)
    alone = [frame for part, _ in parts for frame in decode(part)[1]]
    np.testing.assert_array_equal(frames, alone)
    assert [time * fps for time in times] == list(range(18))


def test_videos_of_one_encoding_have_equal_facts_and_others_do_not(tmp_path):
    def facts(name, size, encoding):
        path = encode(tmp_path / name, images(3, size), encoding)
        return VideoFacts.from_file(path)

    first = facts("1.mp4", (32, 48), VideoEncoding.h264())
    assert first == facts("2.mp4", (32, 48), VideoEncoding.h264())
    assert first != facts("3.mp4", (48, 32), VideoEncoding.h264())
    assert first != facts("4.mp4", (32, 48), VideoEncoding.lossless())


def test_details_of_a_video_in_info_are_read_from_the_file(tmp_path):
    path = encode(tmp_path / "a.mp4", images(3), VideoEncoding())
    assert VideoFacts.from_file(path).info(30, VideoEncoding()) == {
        "video.height": 32,
        "video.width": 48,
        "video.codec": "av1",
        "video.pix_fmt": "yuv420p",
        "video.fps": 30,
        "video.channels": 3,
        "has_audio": False,
        "video.g": 2,
        "video.crf": 30,
        "video.preset": 12,
        "is_depth_map": False,
    }


@pytest.mark.parametrize(
    ("encoding", "size", "message"),
    [
        (
            VideoEncoding(),
            (16, 16),
            "16 x 16 .it encodes 32 x 32 and larger.. Pass",
        ),
        (VideoEncoding.h264(), (33, 35), "'libx264' encodes as 'yuv420p', got 33 x 35"),
    ],
)
def test_images_of_a_size_unsupported_by_the_codec_are_refused(
    tmp_path, encoding, size, message
):
    video = EpisodeVideo(tmp_path / "a.mp4", fps=10, encoding=encoding)
    with pytest.raises(SchemaError, match=message):
        video.add(images(1, size)[0])
    video.discard()


def test_a_video_of_another_rate_is_refused(tmp_path):
    path = encode(tmp_path / "a.mp4", images(2), VideoEncoding.h264(), fps=30)
    with pytest.raises(SchemaError, match="expected a video of 7 images a second"):
        concatenate([(path, 2)], tmp_path / "b.mp4", fps=7)
