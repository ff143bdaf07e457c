from __future__ import annotations

import json

import pytest
import torch
from counting_dataset import counting_dataset
from reference_fingerprints import make_case
from tensordict import TensorDict
from torch.profiler import profile

from torchrl_vla.errors import SchemaError
from torchrl_vla.profiling import (
    TrainingProfiler,
    fingerprint_forward,
    float_images,
    reference_rows,
)
from torchrl_vla.recipes import make_cloning_loss, make_policy, make_space
from torchrl_vla.recipes.behavior_cloning import make_training_transform

IMAGE = ("observation", "image")


def pictures(nested):
    value = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    image = {"front": value, "wrist": value} if nested else value
    return TensorDict({"observation": {"image": image, "image_id": value}}, [1])


@pytest.mark.parametrize(
    ("nested", "cameras"),
    [
        (False, None),
        (False, [IMAGE]),
        (True, None),
        (True, [(*IMAGE, "front"), (*IMAGE, "wrist")]),
    ],
)
def test_images_are_floats_from_0_to_1_with_and_without_metadata(nested, cameras):
    batch = pictures(nested)
    out = float_images(batch, cameras)
    keys = [(*IMAGE, "front"), (*IMAGE, "wrist")] if nested else [IMAGE]
    for key in keys:
        assert out[key].dtype == torch.float32
        assert out[key].flatten().tolist() == pytest.approx([0.0, 0.2, 1.0])
        assert batch[key].dtype == torch.uint8
    assert out["observation", "image_id"].dtype == torch.uint8


def test_a_camera_that_is_not_there_is_named():
    with pytest.raises(SchemaError, match=r"expected images at \[\('observation', 'im"):
        float_images(pictures(False), [(*IMAGE, "front")])


def test_bytes_and_floats_of_one_picture_have_one_fingerprint():
    policy, batch = make_case("tiny-regression")["forward"]
    assert batch[IMAGE].dtype == torch.uint8
    float_batch = float_images(batch)
    outputs = [
        fingerprint_forward(policy, b).outputs["output_dict"]["action_chunk"]
        for b in (batch, float_batch)
    ]
    assert outputs[0] == outputs[1]


def test_the_image_path_copies_an_image_once_and_converts_it_once():
    """SmolVLA once copied its prefix embedding for nothing; that shows in the list."""
    policy, batch = make_case("tiny-regression")["forward"]
    with torch.no_grad(), profile(record_shapes=True) as recorded:
        policy(batch.copy())
    of_image = [
        event.name
        for event in recorded.events()
        if event.input_shapes and sorted(event.input_shapes[0][1:]) == [3, 16, 16]
    ]
    # The layout that the convolution wants, and bytes to floats.
    assert of_image.count("aten::clone") <= 1
    assert of_image.count("aten::_to_copy") == 1
    assert of_image.count("aten::div") == 1


def test_a_short_dataset_repeats_and_an_empty_one_is_refused():
    assert reference_rows(1, 4).tolist() == [0, 0, 0, 0]
    assert reference_rows(3, 4).tolist() == [0, 1, 2, 0]
    with pytest.raises(SchemaError, match="expected at least one frame"):
        reference_rows(0, 4)


def test_a_dataset_of_one_frame_is_fingerprinted_at_batch_size_four(tmp_path):
    dataset = counting_dataset((0.5,))
    torch.manual_seed(0)
    policy = make_policy(dataset, chunk_size=2, hidden=8, depth=1)
    space = make_space(dataset.metadata)
    buffer = dataset.replay_buffer(
        4, transform=make_training_transform(policy, space, dataset.storage)
    )
    profiler = TrainingProfiler(tmp_path, "summary")
    made = profiler.record_deterministic_forward(make_cloning_loss(policy), buffer, 4)
    assert made.reference_batch_size == 4
    written = json.loads((tmp_path / "deterministic_forward.json").read_text())
    assert written["output_fingerprint"] == made.output_fingerprint
    assert set(written) == {
        *("seed", "reference_batch_size", "operators", "operator_fingerprint"),
        *("outputs", "output_fingerprint", "environment"),
    }
