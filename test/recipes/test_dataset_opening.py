from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lerobot_folders import record, write_folder

from torchrl_vla.cli.collect_command import Collect
from torchrl_vla.cli.train_command import Train
from torchrl_vla.data import (
    DemonstrationDataset,
    LeRobotDemonstrations,
    collect,
    write_lerobot,
)
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.errors import SettingsError
from torchrl_vla.recipes import DatasetOptions, make_policy, open_dataset
from torchrl_vla.recipes.dataset_opening import image_sizes_of
from torchrl_vla.schema import SchemaError
from torchrl_vla.schema.lerobot_names import is_repo_id

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    env = TabletopEnv(4, image_size=16)
    folder = tmp_path_factory.mktemp("demonstrations")
    where = folder / "ours"
    dataset = collect(env, env.make_expert(), 4, folder=where, progress=False)
    write_lerobot(dataset, folder / "lerobot", images="png", progress=False)
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def test_a_folder_is_opened_as_what_it_is(folders):
    ours = open_dataset(folders / "ours")
    theirs = open_dataset(str(folders / "lerobot"))
    assert type(ours) is DemonstrationDataset
    assert type(theirs) is LeRobotDemonstrations
    assert len(ours) == len(theirs)
    assert image_sizes_of(ours) == image_sizes_of(theirs) == {None: (3, 16, 16)}


def test_a_policy_fits_both(folders):
    for name in ("ours", "lerobot"):
        policy = make_policy(open_dataset(folders / name), chunk_size=2, hidden=8)
        assert ("observation", "image") in policy.in_keys
        assert policy.action_dim == 2


def test_named_cameras_are_listed_in_order(folders):
    dataset = open_dataset(folders / "ours")
    frames = dataset.frames.clone()
    image = frames.pop(("observation", "image"))
    frames["observation", "image"] = {"wrist": image, "front": image[..., :8, :]}
    cameras = DemonstrationDataset(frames, dataset.metadata, dataset.instructions)
    assert list(image_sizes_of(cameras).items()) == [
        ("front", (3, 8, 16)),
        ("wrist", (3, 16, 16)),
    ]


def test_a_folder_wins_over_a_repository_of_its_name(folders, monkeypatch):
    monkeypatch.chdir(folders.parent)
    assert len(open_dataset(f"{folders.name}/ours")) == len(
        open_dataset(folders / "ours")
    )


@pytest.mark.parametrize(
    ("source", "is_one"),
    [
        ("lerobot/pusht", True),
        ("user/name-v1.0_x", True),
        ("pusht", False),
        ("/lerobot/pusht", False),
        ("./lerobot/pusht", False),
        ("runs/demo/policy", False),
        (Path("lerobot/pusht"), False),
    ],
)
def test_a_repository_is_two_names_and_never_a_path(source, is_one):
    assert is_repo_id(source) == is_one


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a folder at .*nothing"):
        open_dataset(tmp_path / "nothing")


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(SchemaError, match=r"got \['notes.txt'\]"):
        open_dataset(tmp_path)


RENAME = {"observation.image": "observation.images.front"}


def test_options_reach_the_reader(folders):
    options = DatasetOptions(rename=RENAME, exclude_episodes=(1,), tolerance_s=1e-3)
    dataset = open_dataset(folders / "lerobot", options)
    assert dataset.metadata.cameras == ("front",)
    assert dataset.episodes.tolist() == [0, 2, 3]
    ours = open_dataset(folders / "ours", DatasetOptions(exclude_episodes=(0, 3)))
    assert ours.episodes.tolist() == [1, 2]


def write_hdf5(path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for number in range(3):
            demo = file.create_group(f"data/demo_{number}")
            demo["actions"] = [[number + 0.5]] * 2
            demo["obs/eef_pos"] = [[1.0, 2.0]] * 2
            demo["obs/view"] = np.full((2, 4, 6, 3), number, np.uint8)
        file["mask/train"] = np.array(["demo_0", "demo_2"], dtype="S")
    return path


HDF5 = DatasetOptions(layout="robomimic", instruction="lift", state_keys=("eef_pos",))


def test_an_hdf5_file_is_opened_with_its_options(tmp_path):
    path = write_hdf5(tmp_path / "lift.hdf5")
    dataset = open_dataset(path, HDF5)
    assert dataset.metadata.state_names == ("eef_pos_0", "eef_pos_1")
    assert image_sizes_of(dataset) == {}
    options = replace(
        HDF5,
        cameras=("view",),
        rename={"view": "front"},
        flip_images="none",
        filter_key="train",
    )
    dataset = open_dataset(path, options)
    assert dataset.episodes.tolist() == [0, 2]
    assert image_sizes_of(dataset) == {"front": (3, 4, 6)}
    with pytest.raises(ValueError, match=r"got None. Pass layout=.*\(--layout\)"):
        open_dataset(path)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "ours",
            {"tolerance_s": 0.1},
            r"lect`, got .*\(--tolerance-s\), which h",
        ),
        ("lerobot", {"layout": "libero"}, r"a LeRobot folder, got .*\(--layout\)"),
        ("lerobot", {"revision": "v1"}, r"a LeRobot folder, got .*\(--revision\)"),
        ("lift.hdf5", {"empty_task": "x"}, r"an HDF5 file, got .*\(--empty-task\)"),
        ("user/hub", {"filter_key": "x"}, r"of the Hub, got .*\(--filter-key\)"),
        ("own:make", {"cameras": ("x",)}, r"a function, .*\(--cameras\)"),
    ],
)
def test_options_without_an_effect_are_refused(
    folders, tmp_path, name, options, message
):
    folder = tmp_path if name == "lift.hdf5" else folders
    if name == "lift.hdf5":
        write_hdf5(tmp_path / name)
    source = name if name in ("user/hub", "own:make") else folder / name
    with pytest.raises(SettingsError, match=message):
        open_dataset(source, DatasetOptions(**options))


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "cameras": st.lists(st.text(max_size=3), max_size=2).map(tuple),
            "tolerance_s": st.floats(0, 1),
            "statistics": st.sampled_from(["exact", "stored"]),
            "exclude_episodes": st.just((0,)),
        },
    )
)
def test_the_options_that_are_given_are_those_that_were_set(values):
    assert DatasetOptions(**values).given() == values


def test_every_option_that_a_reader_names_is_one_of_the_command_line():
    named = {
        option
        for path in (ROOT / "torchrl_vla/data").rglob("*.py")
        for option in re.findall(r"--([a-z][a-z-]+)", path.read_text())
    }
    records = (DatasetOptions, Collect, Train)
    names = {field.name for record in records for field in fields(record)}
    known = {name.replace("_", "-") for name in names}
    assert len(named) >= 9
    assert named <= known


def test_actions_of_another_name_are_found_by_rename(tmp_path):
    recording = record((3,), cameras=())
    columns = dict(recording.columns)
    action = columns["actions"] = columns.pop("action")
    folder = write_folder(tmp_path / "d", replace(recording, columns=columns))
    with pytest.raises(SchemaError, match=r"'actions'.*\(--rename NAME action\)"):
        open_dataset(folder)
    options = DatasetOptions(rename={"actions": "action"})
    dataset = open_dataset(folder, options)
    assert np.array_equal(dataset.frames["action"], action)
