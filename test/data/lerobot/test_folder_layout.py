"""Both formats are read to the same layout; unfinished folders are refused."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot_folders import CAMERAS, TASKS, edit_info, record, write_folder

from torchrl_vla.data.lerobot.feature_selection import Selection
from torchrl_vla.data.lerobot.folder_layout import LeRobotLayout
from torchrl_vla.data.lerobot.lerobot_feature import Feature
from torchrl_vla.schema import SchemaError

VERSIONS = ("v2.1", "v3.0")


@pytest.fixture(params=VERSIONS)
def folder(request, tmp_path):
    recording = record((2, 3, 2))
    options = {"version": request.param, "images": "video", "files": 2}
    return write_folder(tmp_path / "push", recording, **options)


def edit_features(folder, **changes):
    path = folder / "meta/info.json"
    features = json.loads(path.read_text())["features"] | changes
    return edit_info(
        folder, features={k: v for k, v in features.items() if v is not None}
    )


def test_the_layout_of_a_folder_is_read(folder):
    layout = LeRobotLayout.from_folder(folder)
    assert [episode.length for episode in layout.episodes] == [2, 3, 2]
    assert (layout.num_frames, layout.rate_hz, layout.robot_type) == (7, 10.0, "fake")
    assert list(layout.tasks.values()) == list(TASKS)
    assert layout.features["action"] == Feature(
        "action", "float32", (2,), ("action_0", "action_1"), key="action"
    )
    clip = layout.episodes[1].clips[f"observation.images.{CAMERAS[0]}"]
    # v2.1 has a file for each episode, v3.0 here one for the first two.
    assert clip.start_s == (0.2 if layout.version == "v3.0" else 0.0)
    assert len(layout.data_files) == (2 if layout.version == "v3.0" else 3)


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ((4, 6, 3), ("height", "width", "channels")),
        ((3, 4, 6), ("channels", "height", "width")),
        ((4, 6, 3), None),
    ],
)
def test_the_names_tell_where_the_channels_are(shape, names):
    assert Feature("camera", "image", shape, names).image_shape == (3, 4, 6)


@pytest.mark.parametrize(
    ("names", "flat"),
    [
        (None, None),
        (["x", "y"], ("x", "y")),
        ({"motors": ["x", "y"]}, ("x", "y")),
        ({"x": 0, "y": 1}, ("x", "y")),
    ],
)
def test_names_in_groups_are_put_in_one_list(tmp_path, names, flat):
    folder = write_folder(tmp_path / "push", record((2,), cameras=()))
    action = {"dtype": "float32", "shape": [2], "names": names}
    layout = LeRobotLayout.from_folder(edit_features(folder, action=action))
    assert layout.features["action"].names == flat


def test_tasks_may_be_the_index_of_a_pandas_table(tmp_path):
    folder = write_folder(tmp_path / "push", record((2,), cameras=()))
    table = pa.table({"task_index": [0], "__index_level_0__": ["push"]})
    pq.write_table(table, folder / "meta/tasks.parquet")
    assert LeRobotLayout.from_folder(folder).tasks == {0: "push"}


@pytest.mark.parametrize("version", ["v2.0", "v1.6", "v4.0", None])
def test_another_format_is_refused(folder, version):
    edit_info(folder, codebase_version=version)
    with pytest.raises(SchemaError, match=r"expected codebase_version of \('v2.1'"):
        LeRobotLayout.from_folder(folder)


def test_a_folder_without_info_is_refused_with_its_contents(tmp_path):
    (tmp_path / "stray.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"'meta/info.json' at .*stray.txt"):
        LeRobotLayout.from_folder(tmp_path)


def test_a_recording_of_ours_that_is_not_finished_is_refused(tmp_path):
    (tmp_path / "UNFINISHED.txt").touch()
    with pytest.raises(SchemaError, match=r"an unfinished recording\. Finish it with"):
        LeRobotLayout.from_folder(tmp_path)


@pytest.mark.parametrize("entry", ["total_episodes", "total_frames"])
def test_counts_that_do_not_add_up_are_refused(folder, entry):
    edit_info(folder, **{entry: 9})
    with pytest.raises(SchemaError, match=rf"'{entry}': 9.*was not finished"):
        LeRobotLayout.from_folder(folder)


def test_a_recording_without_its_episodes_is_refused(folder):
    for name in ("episodes.jsonl", "episodes/chunk-000/file-000.parquet"):
        (folder / "meta" / name).unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match=r"episodes.*The recording was not"):
        LeRobotLayout.from_folder(folder)


def test_a_file_that_was_not_closed_is_refused(tmp_path):
    folder = write_folder(tmp_path / "push", record((2,), cameras=()))
    path = folder / "meta/episodes/chunk-000/file-000.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SchemaError, match="expected a finished parquet file"):
        LeRobotLayout.from_folder(folder)


@pytest.mark.parametrize("kind", ["data", "videos"])
def test_a_missing_file_is_named(folder, kind):
    victim = sorted(path for path in (folder / kind).rglob("*") if path.is_file())[-1]
    victim.unlink()
    with pytest.raises(FileNotFoundError, match=f"expected '{kind}/.*{victim.name}'"):
        LeRobotLayout.from_folder(folder)


def test_an_unknown_dtype_is_refused(folder):
    edit_features(folder, **{"observation.cloud": {"dtype": "points", "shape": [3]}})
    with pytest.raises(SchemaError, match=r"feature 'observation.cloud', got 'points'"):
        LeRobotLayout.from_folder(folder)


def test_a_depth_camera_is_refused(folder):
    feature = {"dtype": "video", "shape": [4, 4, 1], "info": {"is_depth_map": True}}
    edit_features(folder, **{"observation.images.depth": feature})
    message = r"a depth map at camera .*images.depth'. .*cameras=\['front'.*--cameras f"
    with pytest.raises(SchemaError, match=message):
        LeRobotLayout.from_folder(folder)
    with pytest.raises(SchemaError, match=message):
        LeRobotLayout.from_folder(folder, Selection(cameras=("depth",)))
    layout = LeRobotLayout.from_folder(folder, Selection(cameras=("front",)))
    images = [name for name, value in layout.features.items() if value.is_image]
    assert images == ["observation.images.front"]
    assert all(list(episode.clips) == images for episode in layout.episodes)


def test_a_camera_without_three_dimensions_is_refused(folder):
    edit_features(
        folder, **{"observation.images.flat": {"dtype": "image", "shape": [4]}}
    )
    with pytest.raises(SchemaError, match=r"three, got \(4,\) at camera .*s.flat"):
        LeRobotLayout.from_folder(folder)


def test_missing_indices_are_refused(folder):
    edit_features(folder, task_index=None)
    with pytest.raises(SchemaError, match=r"got no \['task_index'\]"):
        LeRobotLayout.from_folder(folder)


@pytest.mark.parametrize("name", ["observation.image", "observation"])
def test_features_with_overlapping_keys_are_refused(folder, name):
    edit_features(folder, **{name: {"dtype": "float32", "shape": [1]}})
    with pytest.raises(SchemaError, match=f"got '{name}' and .* keys overlap"):
        LeRobotLayout.from_folder(folder)


def test_episodes_without_their_place_are_refused(tmp_path):
    folder = write_folder(tmp_path / "push", record((2,), cameras=()))
    path = folder / "meta/episodes/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["length"]), path)
    with pytest.raises(SchemaError, match=r"expected columns \[.*got no \['length'\]"):
        LeRobotLayout.from_folder(folder)
