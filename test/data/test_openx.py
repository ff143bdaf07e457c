from __future__ import annotations

import copy
import io
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image
from tensordict import MemoryMappedTensor, TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.datasets import OpenXExperienceReplay as TorchRLOpenX
from torchrl.data.datasets import openx as torchrl_openx

from torchrl_vla.data import MixtureReplay, OpenXConvention, OpenXExperienceReplay
from torchrl_vla.data.openx import OPEN_X_CONVENTIONS
from torchrl_vla.errors import SettingsError
from torchrl_vla.schema import MissingKeyError, SchemaError, validate_vla_tensordict
from torchrl_vla.transforms import ActionChunkTransform

LENGTHS = (3, 2, 4)


def image(value):
    file = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), value, np.uint8)).save(file, "png")
    return {"bytes": file.getvalue()}


def make_step(episode, frame, length):
    """One step as the Hub's mirror of Open X-Embodiment stores it."""
    return {
        "observation": {
            "image": image(10 * episode + frame),
            "state": np.array([episode, frame, 0.5, 0, 0, 0, 1]),
            "natural_language_instruction": f"said {episode}",
        },
        "action": np.array([episode, frame, 0.25]),
        "language_instruction": f"task {episode % 2}",
        "reward": float(frame == length - 1),
        "is_first": frame == 0,
        "is_last": frame == length - 1,
        "is_terminal": frame == length - 1 and episode == 0,
    }


class Hub:
    """Stands in for what ``datasets.load_dataset`` returns."""

    def __iter__(self):
        for episode, length in enumerate(LENGTHS):
            steps = [make_step(episode, frame, length) for frame in range(length)]
            yield {"data.pickle": {"steps": steps}}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder that TorchRL's own class has written, from steps made here."""
    datasets = types.ModuleType("datasets")
    datasets.load_dataset = lambda *_, **__: Hub()
    functional = types.ModuleType("torchvision.transforms.v2.functional")
    functional.pil_to_tensor = lambda image: torch.from_numpy(
        np.array(image).transpose(2, 0, 1).copy()
    )
    parent = None
    for name in ("torchvision", "transforms", "v2"):
        full = name if parent is None else f"{parent.__name__}.{name}"
        module = types.ModuleType(full)
        if parent is not None:
            setattr(parent, name, module)
        monkeypatch.setitem(sys.modules, full, module)
        parent = module
    parent.functional = functional
    monkeypatch.setitem(sys.modules, functional.__name__, functional)
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    monkeypatch.setattr(torchrl_openx, "_has_datasets", True)
    monkeypatch.setattr(torchrl_openx, "_has_tv", True)
    TorchRLOpenX("cmu_stretch", root=tmp_path, download=True, batch_size=1)
    return tmp_path


def open_stretch(root, **options):
    return OpenXExperienceReplay.from_root(
        "cmu_stretch", root, convention=OpenXConvention(**options)
    )


def test_the_steps_that_torchrl_wrote_become_frames(root):
    dataset = open_stretch(root)
    frames = dataset.frames
    assert frames["episode_index"].tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert frames["frame_index"].tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 3]
    assert frames["episode_index"].dtype == torch.int64
    assert frames["action"].dtype == torch.float32
    assert frames["action"][4].tolist() == [1.0, 1.0, 0.25]
    assert frames["observation", "state"][4].tolist() == [1, 1, 0.5, 0, 0, 0, 1]
    images = frames["observation", "image"]
    assert images.shape == (9, 3, 4, 6)
    assert images[:, 0, 0, 0].tolist() == [0, 1, 2, 10, 11, 20, 21, 22, 23]
    texts = dataset.instructions.decode(frames["language_instruction"])
    assert texts == ["task 0"] * 3 + ["task 1"] * 2 + ["task 0"] * 4
    assert frames["next", "done"].nonzero()[:, 0].tolist() == [2, 4, 8]
    assert frames["next", "terminated"].nonzero()[:, 0].tolist() == [2]
    assert frames["next", "truncated"].nonzero()[:, 0].tolist() == [4, 8]
    assert frames["next", "reward"].nonzero()[:, 0].tolist() == [2, 4, 8]
    assert ("next", "observation") not in frames.keys(True)


def test_images_stay_memory_mapped(root):
    images = open_stretch(root).frames["observation", "image"]
    assert isinstance(images, MemoryMappedTensor)


def test_samples_follow_the_schema(root):
    dataset = open_stretch(root)
    chunks = ActionChunkTransform(3, storage=dataset.storage)
    batch = dataset.replay_buffer(16, transform=chunks, seed=0).sample()
    assert validate_vla_tensordict(batch, metadata=dataset.metadata) == []
    last = batch["next", "done"].squeeze(-1)
    assert last.any()
    assert torch.equal(batch["action_is_pad"][:, 1], last)


def test_the_text_may_be_among_the_observations(root):
    key = ("observation", "natural_language_instruction")
    dataset = open_stretch(root, instruction_key=key)
    texts = dataset.instructions.decode(dataset.frames["language_instruction"])
    assert texts == ["said 0"] * 3 + ["said 1"] * 2 + ["said 2"] * 4


def test_cameras_can_have_other_names(root):
    dataset = open_stretch(root, cameras={"front": ("observation", "image")})
    assert ("observation", "image", "front") in dataset.frames.keys(True)


def test_it_is_mixed_and_statistics_are_there(root):
    dataset = open_stretch(root)
    assert dataset.metadata.dataset_id == "cmu_stretch"
    assert dataset.metadata.action_statistics.count == 9
    assert dataset.metadata.action_units is None
    batch = MixtureReplay([dataset, dataset], batch_size=4, chunk_size=2).sample()
    assert batch["observation", "image"].shape == (4, 3, 4, 6)


def stored(**entries):
    """A buffer of TorchRL's layout, with a dictionary of actions as in bridge."""
    steps = {
        "episode": torch.tensor([0, 0, 1], dtype=torch.int32),
        "action": {
            "world_vector": torch.arange(9.0).view(3, 3),
            "rotation_delta": -torch.ones(3, 3),
            "open_gripper": torch.tensor([True, False, True]),
            "gripper_closedness_action": torch.tensor([[1.0], [0.0], [-1.0]]),
        },
        "observation": {
            "image": torch.zeros(3, 3, 4, 4, dtype=torch.uint8),
            "state": torch.rand(3, 7),
            "base_pose_tool_reached": torch.rand(3, 7),
            "gripper_closed": torch.rand(3, 1),
        },
    }
    data = TensorDict(steps, [3])
    data["observation", "natural_language_instruction"] = "stack the cups"
    for key, value in entries.items():
        data[key] = value
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(3), batch_size=1)
    buffer.extend(data)
    return buffer


def from_bridge(buffer, **changes):
    convention = copy.copy(OPEN_X_CONVENTIONS["bridge"])
    for name, value in changes.items():
        object.__setattr__(convention, name, value)
    return OpenXExperienceReplay.from_torchrl(buffer, convention, dataset_id="bridge")


def test_a_dictionary_of_actions_is_joined_in_the_documented_order():
    dataset = from_bridge(stored())
    assert dataset.frames["action"].tolist() == [
        [0, 1, 2, -1, -1, -1, 1],
        [3, 4, 5, -1, -1, -1, 0],
        [6, 7, 8, -1, -1, -1, 1],
    ]
    (gripper,) = dataset.metadata.grippers
    assert (gripper.dim, gripper.open, gripper.closed) == (6, 1.0, 0.0)
    assert dataset.metadata.control_frequency_hz == 5.0
    assert dataset.instructions.texts == ("stack the cups",)


def test_a_gripper_that_is_a_change_has_no_range():
    dataset = OpenXExperienceReplay.from_torchrl(
        stored(),
        OPEN_X_CONVENTIONS["fractal20220817_data"],
        dataset_id="fractal20220817_data",
    )
    assert dataset.frames["action"][:, 6].tolist() == [1.0, 0.0, -1.0]
    assert dataset.frames["observation", "state"].shape == (3, 8)
    assert dataset.metadata.grippers == ()


@pytest.mark.parametrize("name", sorted(OPEN_X_CONVENTIONS))
def test_known_conventions_are_of_datasets_that_torchrl_has(name):
    assert name in TorchRLOpenX.available_datasets
    assert OPEN_X_CONVENTIONS[name].metadata.dataset_id == name


def test_bytes_are_text():
    dataset = from_bridge(
        stored(note=b"open the jar"), instruction_key="note", cameras={}
    )
    assert dataset.instructions.texts == ("open the jar",)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"action_keys": ("act",)},
            MissingKeyError,
            "'act' in the steps.*world_vector",
        ),
        ({"action_keys": ("action",)}, SchemaError, "numbers at 'action'.*entries"),
        (
            {"cameras": {"image": ("observation", "state")}},
            SchemaError,
            r"uint8 images \[F, 3, h, w\].*float32 \[3, 7\]",
        ),
        (
            {"instruction_key": ("observation", "state")},
            SchemaError,
            "text at .*'state'.*instruction_key",
        ),
    ],
)
def test_a_convention_that_does_not_fit_is_refused(changes, error, message):
    with pytest.raises(error, match=message):
        from_bridge(stored(), **changes)


def test_episodes_that_are_torn_are_refused():
    with pytest.raises(SchemaError, match="contiguous, got 3 runs of 2 episodes"):
        from_bridge(stored(episode=torch.tensor([0, 1, 0])))


def test_a_dataset_without_a_known_convention_needs_one(tmp_path):
    with pytest.raises(ValueError, match=r"convention=OpenXConvention.*'cmu_stretch'"):
        OpenXExperienceReplay.from_root("cmu_stretch", tmp_path)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder at .*bridge.*download=True"):
        OpenXExperienceReplay.from_root("bridge", tmp_path)


def test_an_episode_with_a_number_that_is_not_finite_is_left_out_by_name():
    steps = TensorDict(
        action=torch.tensor([[0.0], [float("nan")], [2.0]]),
        episode=torch.tensor([4, 4, 5], dtype=torch.int32),
        batch_size=[3],
    )
    steps["language_instruction"] = "lift the lid"
    stored = TensorDictReplayBuffer(storage=LazyTensorStorage(3), batch_size=2)
    stored.extend(steps)
    convention = OpenXConvention(state_keys=(), cameras={})
    options = {"dataset_id": "lab"}
    with pytest.raises(SchemaError, match=r"of frame 1 of episode 4 .*episodes=\[4\]"):
        OpenXExperienceReplay.from_torchrl(stored, convention, **options)
    rest = OpenXExperienceReplay.from_torchrl(
        stored, convention, exclude_episodes=[4], **options
    )
    assert rest.frames["action"].tolist() == [[2.0]]


def test_the_arguments_of_torchrls_class_name_their_replacement():
    message = r"got str and \['batch_size', 'slice_len'\].*from_root\(.*slice_len="
    with pytest.raises(SettingsError, match=message):
        OpenXExperienceReplay("bridge", batch_size=32, slice_len=16)
