"""Images of any rows in any order, from PNG and from video."""

from __future__ import annotations

import multiprocessing
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lerobot_folders import (
    CAMERAS,
    HEIGHT,
    WIDTH,
    edit_info,
    encode_png,
    record,
    write_folder,
)

from torchrl_vla.data import LeRobotDemonstrations
from torchrl_vla.data.lerobot import image_reader
from torchrl_vla.data.lerobot.image_reader import OpenVideos
from torchrl_vla.data.lerobot.video_decoder import DECODERS, torchcodec_loads
from torchrl_vla.schema import SchemaError

RECORDING = record()
N = sum(RECORDING.lengths)


def reader_of(folder, tmp_path, decoder="pyav"):
    dataset = LeRobotDemonstrations.from_folder(
        folder, cache_folder=tmp_path, decoder=decoder
    )
    return dataset._reader


KINDS = [("image", "pyav"), ("video", "pyav")]
KINDS += [("video", "torchcodec")] if torchcodec_loads() else []


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def reader(request, tmp_path_factory):
    kind, decoder = request.param
    path = tmp_path_factory.mktemp(kind)
    folder = write_folder(path / "push", RECORDING, images=kind, files=3)
    return reader_of(folder, path / "cache", decoder)


def check(found, rows):
    for camera in CAMERAS:
        name = f"observation.images.{camera}"
        expected = torch.from_numpy(RECORDING.images[name][rows])
        assert torch.equal(found[name], expected.permute(0, 3, 1, 2))


def test_any_rows_in_any_order_and_more_than_once(reader):
    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.integers(0, N - 1), min_size=1, max_size=20))
    def run(rows):
        check(reader.read(torch.tensor(rows)), rows)

    run()


@pytest.mark.parametrize("num_threads", [1, 3])
def test_threads_change_nothing(reader, monkeypatch, num_threads):
    monkeypatch.setattr(image_reader, "_PIXELS_WORTH_A_THREAD", 1)
    threaded = image_reader.ImageReader(reader.cameras, reader.decoder, num_threads)
    rows = [4, 4, 0, 14, 7, 3, 9]
    check(threaded.read(torch.tensor(rows)), rows)
    copy = pickle.loads(pickle.dumps(threaded))
    check(copy.read(torch.tensor(rows)), rows)


def read_in_child(reader, rows, queue):
    queue.put({k: v.numpy() for k, v in reader.read(torch.tensor(rows)).items()})


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_opens_its_own_decoders(reader, monkeypatch):
    monkeypatch.setattr(image_reader, "_PIXELS_WORTH_A_THREAD", 1)
    rows = [12, 1, 5]
    check(reader.read(torch.tensor(rows)), rows)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=read_in_child, args=(reader, rows, queue))
    child.start()
    found = queue.get(timeout=30)
    child.join()
    check({k: torch.from_numpy(v) for k, v in found.items()}, rows)
    check(reader.read(torch.tensor(rows)), rows)


def test_images_are_channels_last_in_memory(reader):
    image = reader.read(torch.tensor([0, 1]))["observation.images.front"]
    assert image.shape == (2, 3, HEIGHT, WIDTH)
    assert image.is_contiguous(memory_format=torch.channels_last)


def test_only_the_last_used_videos_stay_open(monkeypatch):
    closed = []

    class Video:
        def __init__(self, path, index):
            self.path = path

        def close(self):
            closed.append(self.path)

    monkeypatch.setitem(DECODERS, "pyav", Video)
    videos = OpenVideos("pyav", 2)
    first = videos.get("a", None)
    videos.get("b", None)
    assert videos.get("a", None) is first
    videos.get("c", None)
    assert closed == ["b"]


def rewrite_images(folder, entries):
    path = folder / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    name = "observation.images.front"
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    column = pa.array(entries, kind)
    table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, path)


def test_images_may_lie_in_files_of_their_own(tmp_path):
    recording = record((2,), cameras=("front",))
    folder = write_folder(tmp_path / "push", recording)
    stored = recording.images["observation.images.front"]
    (folder / "images").mkdir()
    entries = []
    for number, image in enumerate(stored):
        path = f"images/frame-{number}.png"
        (folder / path).write_bytes(encode_png(image))
        entries.append({"bytes": None, "path": path})
    rewrite_images(folder, entries)
    decoded = reader_of(folder, tmp_path / "cache").read(torch.tensor([1, 0]))
    found = decoded["observation.images.front"].permute(0, 2, 3, 1).numpy()
    assert (found == stored[[1, 0]]).all()
    (folder / "images/frame-1.png").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"a file at .*frame-1.png'.* of row 1 of"
    ):
        reader_of(folder, tmp_path / "cache")


def test_a_frame_without_a_image_is_refused(tmp_path):
    folder = write_folder(tmp_path / "push", record((2,), cameras=("front",)))
    png = encode_png(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    rewrite_images(folder, [{"bytes": png, "path": None}, None])
    with pytest.raises(
        SchemaError, match=r"an image in each frame in row 1 of .* got none"
    ):
        reader_of(folder, tmp_path / "cache")


@pytest.mark.parametrize("pixels", [np.zeros((8, 8, 3)), np.zeros((HEIGHT, WIDTH))])
def test_a_image_of_another_size_is_refused(tmp_path, pixels):
    folder = write_folder(tmp_path / "push", record((1,), cameras=("front",)))
    rewrite_images(
        folder, [{"bytes": encode_png(pixels.astype(np.uint8)), "path": None}]
    )
    with pytest.raises(SchemaError, match=r"expected uint8 images of 16 x 24 with 3"):
        reader_of(folder, tmp_path / "cache").read(torch.tensor([0]))


def test_a_video_of_another_size_is_refused(tmp_path):
    recording = record((2,), cameras=("front",))
    folder = write_folder(tmp_path / "push", recording, images="video")
    path = folder / "meta/info.json"
    edit_info(folder)
    path.write_text(path.read_text().replace("[16, 24, 3]", "[32, 24, 3]"))
    reader = reader_of(folder, tmp_path / "cache")
    with pytest.raises(SchemaError, match=r"images of 32 x 24 .* in frame 1 of"):
        reader.read(torch.tensor([1]))
