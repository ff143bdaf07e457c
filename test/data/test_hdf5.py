from __future__ import annotations

import copy
import json

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrl_vla.data import DemonstrationDataset, Hdf5Demonstrations, MixtureReplay
from torchrl_vla.schema import (
    MissingKeyError,
    RobotDatasetMetadata,
    SchemaError,
    validate_vla_tensordict,
)
from torchrl_vla.transforms import ActionChunkTransform

ENV_ARGS = {"env_kwargs": {"robots": ["Panda"], "control_freq": 20}}
LIBERO = {
    "layout": "libero",
    "state_keys": ("ee_states", "gripper_states"),
    "cameras": {"front": "agentview_rgb", "wrist": "eye_in_hand_rgb"},
    "flip_images": "vertical",
}
ROBOMIMIC = {
    "layout": "robomimic",
    "state_keys": ("robot0_eef_pos",),
    "instruction": "lift the cube",
}


def write_libero(path, lengths=(3, 2), size=(4, 6), text="open the drawer", seed=0):
    """Write a file as LIBERO lays it out, with demo_<i> of random content."""
    random = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps(ENV_ARGS)
        data.attrs["problem_info"] = json.dumps({"language_instruction": text})
        for number, length in enumerate(lengths):
            demo = data.create_group(f"demo_{number}")
            demo["actions"] = random.normal(size=(length, 7))
            demo["rewards"] = np.eye(length, dtype=np.uint8)[-1]
            demo["dones"] = np.ones(length, dtype=np.uint8)
            demo["obs/ee_states"] = random.normal(size=(length, 6))
            demo["obs/gripper_states"] = random.normal(size=(length, 2))
            for key in ("agentview_rgb", "eye_in_hand_rgb"):
                images = random.integers(256, size=(length, *size, 3), dtype=np.uint8)
                demo.create_dataset(f"obs/{key}", data=images, chunks=(2, *size, 3))
    return path


def write_robomimic(path, lengths=(3, 2)):
    with h5py.File(path, "w") as file:
        for number, length in enumerate(lengths):
            demo = file.create_group(f"data/demo_{number}")
            demo["actions"] = np.arange(2.0 * length).reshape(length, 2) + 100 * number
            demo["obs/robot0_eef_pos"] = np.full((length, 3), float(number))
    return path


@pytest.fixture
def libero(tmp_path):
    return write_libero(tmp_path / "drawer_demo.hdf5")


@pytest.fixture
def robomimic(tmp_path):
    return write_robomimic(tmp_path / "lift.hdf5")


def test_the_frames_are_those_of_the_file(libero):
    dataset = Hdf5Demonstrations.from_file(libero, **LIBERO)
    frames = dataset.frames
    assert frames["episode_index"].tolist() == [0, 0, 0, 1, 1]
    assert frames["frame_index"].tolist() == [0, 1, 2, 0, 1]
    assert frames["next", "done"].flatten().nonzero().flatten().tolist() == [2, 4]
    assert frames["next", "reward"].flatten().tolist() == [0.0, 0.0, 1.0, 0.0, 1.0]
    with h5py.File(libero) as file:
        demo = file["data/demo_1"]
        action = torch.from_numpy(demo["actions"][()]).float()
        ee, gripper = (
            torch.from_numpy(demo["obs"][key][()]).float()
            for key in ("ee_states", "gripper_states")
        )
    assert torch.equal(frames["action"][3:], action)
    assert torch.equal(frames["observation", "state"][3:], torch.cat([ee, gripper], -1))
    texts = dataset.instructions.decode(frames["language_instruction"])
    assert texts == ["open the drawer"] * 5


@pytest.mark.parametrize(
    ("flip", "turn"),
    [
        ("none", lambda image: image),
        ("vertical", lambda image: image[::-1]),
        ("rotate_180", lambda image: np.rot90(image, 2)),
    ],
)
def test_images_are_flipped_and_channels_first(libero, flip, turn):
    dataset = Hdf5Demonstrations.from_file(libero, **{**LIBERO, "flip_images": flip})
    rows = dataset.replay_buffer(1)[torch.tensor([4, 0, 4])]
    with h5py.File(libero) as file:
        for camera, key in LIBERO["cameras"].items():
            stored = [file[f"data/demo_{d}/obs/{key}"][f] for d, f in ((1, 1), (0, 0))]
            expected = [turn(image).transpose(2, 0, 1) for image in stored]
            images = rows["observation", "image", camera]
            assert images.dtype == torch.uint8
            assert np.array_equal(images[0], expected[0])
            assert np.array_equal(images[1], expected[1])
            assert np.array_equal(images[2], expected[0])


@settings(max_examples=20, deadline=None)
@given(rows=st.lists(st.integers(0, 4), min_size=1, max_size=8))
def test_images_come_back_in_the_order_of_the_rows(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("order")
    dataset = Hdf5Demonstrations.from_file(write_libero(folder / "a.hdf5"), **LIBERO)
    buffer = dataset.replay_buffer(1)
    whole, part = buffer[:], buffer[torch.tensor(rows)]
    assert (part == whole[torch.tensor(rows)]).all()


def test_samples_follow_the_schema(libero):
    dataset = Hdf5Demonstrations.from_file(libero, **LIBERO)
    chunks = ActionChunkTransform(4, storage=dataset.storage)
    batch = dataset.replay_buffer(16, transform=chunks, seed=0).sample()
    assert validate_vla_tensordict(batch, metadata=dataset.metadata) == []
    assert batch["action_chunk"].shape == (16, 4, 7)


def test_the_frames_hold_no_images(libero):
    dataset = Hdf5Demonstrations.from_file(libero, **LIBERO)
    buffer = dataset.replay_buffer(2)
    buffer.sample()
    buffer[:]
    assert ("observation", "image") not in dataset.frames.keys(True)


def test_the_metadata_are_what_the_file_declares_with_its_statistics(libero):
    metadata = Hdf5Demonstrations.from_file(libero, **LIBERO).metadata
    assert metadata.dataset_id == "drawer_demo"
    assert metadata.embodiment_id == "Panda"
    assert metadata.control_frequency_hz == 20
    assert metadata.cameras == ("front", "wrist")
    assert metadata.state_names[5:7] == ("ee_states_5", "gripper_states_0")
    assert (metadata.action_dim, metadata.action_statistics.count) == (7, 5)
    assert metadata.action_reference is None  # the file does not say


def test_the_caller_declares_what_the_file_does_not(libero):
    declared = RobotDatasetMetadata("mine", action_dim=7, action_reference="delta")
    dataset = Hdf5Demonstrations.from_file(libero, **LIBERO, metadata=declared)
    assert dataset.metadata.dataset_id == "mine"
    assert dataset.metadata.action_reference == ("delta",) * 7
    assert dataset.metadata.state_dim == 8
    low = dataset.frames["action"].min(0).values
    assert torch.equal(dataset.metadata.action_statistics.min.float(), low)


def test_a_robomimic_file_needs_an_instruction(robomimic):
    dataset = Hdf5Demonstrations.from_file(robomimic, **ROBOMIMIC)
    assert dataset.instructions.texts == ("lift the cube",)
    assert dataset.metadata.embodiment_id is None
    assert ("next", "reward") not in dataset.frames.keys(True)
    assert ("observation", "image") not in dataset.replay_buffer(3).sample().keys(True)


def test_a_file_may_have_no_state(robomimic):
    dataset = Hdf5Demonstrations.from_file(robomimic, **{**ROBOMIMIC, "state_keys": ()})
    assert "observation" not in dataset.frames
    assert dataset.metadata.state_statistics is None


def test_demonstrations_are_ordered_by_number_and_keep_it(tmp_path):
    path = write_robomimic(tmp_path / "lift.hdf5", lengths=(1,) * 12)
    with h5py.File(path, "a") as file:
        del file["data/demo_3"]
    frames = Hdf5Demonstrations.from_file(path, **ROBOMIMIC).frames
    numbers = [0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11]
    assert frames["episode_index"].tolist() == numbers
    assert frames["action"][:, 0].tolist() == [100.0 * n for n in numbers]


def test_a_selection_still_reads_its_images(libero):
    dataset = Hdf5Demonstrations.from_file(libero, **LIBERO)
    part = dataset.select_episodes(torch.tensor([1]))
    assert (part.replay_buffer(1)[:] == dataset.replay_buffer(1)[3:]).all()
    train, rest = dataset.split(0.5)
    assert len(train) + len(rest) == 5
    assert ("observation", "image", "wrist") in rest.replay_buffer(1).sample().keys(
        True
    )


def test_a_folder_written_from_it_has_the_images(libero, tmp_path):
    dataset = Hdf5Demonstrations.from_file(libero, **LIBERO)
    folder = dataset.to_folder(tmp_path / "native")
    native = DemonstrationDataset.from_folder(folder)
    assert (native.frames == dataset.replay_buffer(1)[:]).all()
    assert native.metadata == dataset.metadata


def test_a_dataset_is_picklable_after_it_was_read(libero):
    dataset = Hdf5Demonstrations.from_file(libero, **LIBERO)
    expected = dataset.replay_buffer(1)[:]
    images = copy.deepcopy(dataset.images)  # an open file cannot be copied
    again = images.read(expected["episode_index"], expected["frame_index"])
    assert torch.equal(again["front"], expected["observation", "image", "front"])


def test_it_is_mixed_with_others(libero, robomimic):
    datasets = [
        Hdf5Demonstrations.from_file(libero, **LIBERO),
        Hdf5Demonstrations.from_file(robomimic, **ROBOMIMIC),
    ]
    cameras = [{"front": ("observation", "image", "front")}, {"front": None}]
    mixture = MixtureReplay(datasets, batch_size=4, chunk_size=2, cameras=cameras)
    rows = mixture[:]
    stored = datasets[0].replay_buffer(1)[:]["observation", "image", "front"]
    assert torch.equal(rows["observation", "image", "front"][:5], stored)
    assert rows["camera_is_pad", "front"].tolist() == [False] * 5 + [True] * 5
    assert rows["action_dim_is_pad"].sum(-1).tolist() == [0] * 5 + [5] * 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "rlds"}, "layout 'robomimic' or 'libero', got 'rlds'"),
        ({"instruction": "open"}, "none for 'libero'.*got 'open'"),
        ({"layout": "robomimic"}, "instruction for layout 'robomimic'.*got None"),
        ({"flip_images": None}, "flip_images of .*'vertical'.*upside down"),
        ({"flip_images": "both"}, "flip_images of .*got 'both'"),
        ({"flip_images": True}, "flip_images of .*got True"),
    ],
)
def test_undeclared_properties_of_a_file_are_required_arguments(
    libero, options, message
):
    with pytest.raises(ValueError, match=message):
        Hdf5Demonstrations.from_file(libero, **{**LIBERO, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state_keys": ("ee_pose",)}, "'ee_pose' in 'demo_0/obs'.*'ee_states'"),
        ({"cameras": {"front": "agentview_image"}}, "'agentview_image'.*agentview_rgb"),
    ],
)
def test_a_missing_observation_is_refused(libero, options, message):
    with pytest.raises(MissingKeyError, match=message):
        Hdf5Demonstrations.from_file(libero, **{**LIBERO, **options})


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a file at .*gone"):
        Hdf5Demonstrations.from_file(tmp_path / "gone.hdf5", **LIBERO)


def test_a_file_without_an_instruction_is_no_libero_file(robomimic):
    with pytest.raises(MissingKeyError, match=r"'problem_info'.*layout='robomimic'"):
        Hdf5Demonstrations.from_file(robomimic, **LIBERO)


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("data", "expected 'data' in 'lift.hdf5'"),
        ("data/demo_0", "expected 'demo_0', ... in 'data'"),
        ("data/demo_0/actions", "expected 'actions' in 'demo_0'"),
        ("data/demo_0/obs", "expected 'obs' in 'demo_0'"),
    ],
)
def test_a_file_of_another_structure_is_refused(tmp_path, remove, message):
    path = write_robomimic(tmp_path / "lift.hdf5", lengths=(2,))
    with h5py.File(path, "a") as file:
        del file[remove]
    with pytest.raises(MissingKeyError, match=message):
        Hdf5Demonstrations.from_file(path, **ROBOMIMIC)


def test_observations_of_another_length_are_refused(tmp_path):
    path = write_robomimic(tmp_path / "lift.hdf5")
    with h5py.File(path, "a") as file:
        del file["data/demo_1/obs/robot0_eef_pos"]
        file["data/demo_1/obs/robot0_eef_pos"] = np.zeros((3, 3))
    with pytest.raises(SchemaError, match=r"one row of 'robot0_eef_pos'.*got 3 for 2"):
        Hdf5Demonstrations.from_file(path, **ROBOMIMIC)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((3, 4, 6, 3)), r"uint8 images.*'demo_0/obs/agentview_rgb'.*float64"),
        (np.zeros((3, 3, 4, 6), np.uint8), r"\[T, h, w, 3\].*\[3, 3, 4, 6\]"),
        (np.zeros((3, 8, 8, 3), np.uint8), r"one size per camera.*'front', 4, 6, 3"),
    ],
)
def test_images_of_an_unknown_kind_are_refused(libero, images, message):
    with h5py.File(libero, "a") as file:
        del file["data/demo_0/obs/agentview_rgb"]
        file["data/demo_0/obs/agentview_rgb"] = images
    with pytest.raises(SchemaError, match=message):
        Hdf5Demonstrations.from_file(libero, **LIBERO)


def test_metadata_of_another_size_are_refused(libero):
    declared = RobotDatasetMetadata("mine", action_dim=7, state_dim=9)
    with pytest.raises(
        SchemaError, match=r"'state_dim': 9.*'state_dim': 8.*state_keys"
    ):
        Hdf5Demonstrations.from_file(libero, **LIBERO, metadata=declared)


def test_quotes_around_an_instruction_are_not_part_of_it(tmp_path):
    path = write_libero(tmp_path / "quoted.hdf5", text='"open it"')
    dataset = Hdf5Demonstrations.from_file(path, **LIBERO)
    assert dataset.instructions.texts == ("open it",)


def test_history_is_gathered_without_images_and_refused_with_them(libero, robomimic):
    states = Hdf5Demonstrations.from_file(robomimic, **ROBOMIMIC)
    batch = states.replay_buffer(8, history_size=2, seed=0).sample()
    assert batch["observation_history", "state"].shape[:2] == (8, 2)
    with pytest.raises(SchemaError, match="history_size=1 with cameras, got 2"):
        Hdf5Demonstrations.from_file(libero, **LIBERO).replay_buffer(8, history_size=2)


def test_a_mask_chooses_demonstrations(robomimic):
    with h5py.File(robomimic, "a") as file:
        file["mask/valid"] = np.array(["demo_1"], dtype="S")
        file["mask/text"] = ["demo_1", "demo_0"]  # variable-length strings
        file["mask/none"] = np.array([], dtype="S6")
        file["mask/other"] = np.array(["demo_7"], dtype="S")
    valid = Hdf5Demonstrations.from_file(robomimic, filter_key="valid", **ROBOMIMIC)
    assert valid.frames["action"][:, 0].tolist() == [100.0, 102.0]
    assert valid.episodes.tolist() == [1]
    assert valid.metadata.action_statistics.min[0] == 100.0
    both = Hdf5Demonstrations.from_file(robomimic, filter_key="text", **ROBOMIMIC)
    assert both.episodes.tolist() == [0, 1]
    for name, message in (("none", "got none"), ("other", r"got \['demo_7'\]")):
        with pytest.raises(SchemaError, match=rf"{message}.*\(--filter-key\)"):
            Hdf5Demonstrations.from_file(robomimic, filter_key=name, **ROBOMIMIC)
    with pytest.raises(MissingKeyError, match=r"--filter-key\) of \['none', .*'test'"):
        Hdf5Demonstrations.from_file(robomimic, filter_key="test", **ROBOMIMIC)


def test_a_file_without_masks_has_no_filter_key(robomimic):
    with pytest.raises(MissingKeyError, match=r"of \[\], the masks of the file, got"):
        Hdf5Demonstrations.from_file(robomimic, filter_key="train", **ROBOMIMIC)


def test_a_number_that_is_not_finite_is_named(robomimic):
    with h5py.File(robomimic, "a") as file:
        file["data/demo_1/obs/robot0_eef_pos"][1, 2] = np.nan
    message = r"'state'\), got \[nan\] at dimensions \[2\] of frame 1 of"
    with pytest.raises(SchemaError, match=message + r" episode 1 .*episodes=\[1\]"):
        Hdf5Demonstrations.from_file(robomimic, **ROBOMIMIC)
    rest = Hdf5Demonstrations.from_file(robomimic, exclude_episodes=[1], **ROBOMIMIC)
    assert rest.episodes.tolist() == [0]
