"""Relative and delta rotations, against SciPy's composition of rotations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from tensordict import TensorDict

from torchrl_vla.schema import (
    IncompatibleMetadataError,
    MetadataError,
    RobotDatasetMetadata,
    RotationConvention,
)
from torchrl_vla.schema.conventions import ROTATION_LAYOUTS
from torchrl_vla.transforms import PreviousAction

LAYOUTS = tuple(ROTATION_LAYOUTS)
FRAMES = ("world", "body")


def record(name, layout, reference, frame=None, unit="rad", **changes):
    size = ROTATION_LAYOUTS[layout]
    names = ("x", *(f"{layout}_{i}" for i in range(size)))
    return RobotDatasetMetadata(
        name,
        action_names=names,
        action_units=("m", *(unit if size == 3 else "1" for _ in range(size))),
        action_reference=reference,
        rotations=(RotationConvention(tuple(range(1, size + 1)), layout, frame),),
        state_names=names,
        state_units=("m", *(unit if size == 3 else "1" for _ in range(size))),
        **changes,
    )


def numbers(rotation, layout, unit="rad"):
    """Return SciPy's rotations as the numbers of a layout."""
    matrix = rotation.as_matrix()
    scale = 180 / np.pi if unit == "deg" else 1.0
    return {
        "euler_xyz": lambda: rotation.as_euler("xyz") * scale,
        "axis_angle": lambda: rotation.as_rotvec() * scale,
        "quaternion_wxyz": lambda: rotation.as_quat(True, scalar_first=True),
        "quaternion_xyzw": lambda: rotation.as_quat(True),
        "rotation_6d_rows": lambda: matrix[..., :2, :].reshape(-1, 6),
        "rotation_6d_columns": lambda: np.concatenate(
            [matrix[..., 0], matrix[..., 1]], -1
        ),
    }[layout]()


def with_place(rotation, layout, places, unit="rad"):
    turned = torch.from_numpy(numbers(rotation, layout, unit).reshape(len(places), -1))
    return torch.cat([torch.tensor(places).double().unsqueeze(-1), turned], -1)


def measured(targets, base, reference, frame):
    """Return what SciPy says the actions are, for absolute targets."""
    if reference == "absolute":
        return targets
    starts = [base] * len(targets)
    if reference == "delta":
        starts = [base, *list(targets)[:-1]]
    steps = [
        after * before.inv() if frame == "world" else before.inv() * after
        for before, after in zip(starts, targets, strict=True)
    ]
    return Rotation.concatenate(steps)


def places_of(reference):
    # targets 3, 5, 4 from 1
    kinds = {"absolute": (3, 5, 4), "relative": (2, 4, 3), "delta": (2, 2, -1)}
    return kinds[reference]


TARGETS = Rotation.random(3, random_state=3)
BASE = Rotation.random(1, random_state=4)[0]


def make_data(metadata, reference, frame, layout, unit="rad"):
    steps = measured(TARGETS, BASE, reference, frame)
    base = with_place(Rotation.concatenate([BASE]), layout, (1,), unit)
    return TensorDict(
        {
            "action_chunk": with_place(steps, layout, places_of(reference), unit)[None],
            "observation": {"state": base},
            "previous_action": base,
        },
        [1],
    )


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("reference", ["relative", "delta"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_absolute_rotations_are_measured_as_scipy_composes_them(
    layout, reference, frame
):
    source = record("source", layout, "absolute")
    for other in LAYOUTS:
        target = record("target", other, reference, frame)
        target = replace(target, state_names=None, state_units=None, state_dim=None)
        conversion = source.conversion_to(target)
        data = make_data(source, "absolute", None, layout)
        found = conversion(data)
        steps = measured(TARGETS, BASE, reference, frame)
        wanted = with_place(steps, other, places_of(reference))
        if "quaternion" in other:  # the sign that a conversion writes
            real = 1 if other == "quaternion_wxyz" else 4
            wanted[:, 1:] *= wanted[:, real : real + 1].sign()
        torch.testing.assert_close(found["action_chunk"][0], wanted, atol=1e-7, rtol=0)
        back = conversion.to_source(found)["action_chunk"][0, :, 1:]
        again = numbers(TARGETS, layout)
        if "quaternion" in layout:
            real = 0 if layout == "quaternion_wxyz" else 3
            again = again * np.sign(again[:, real : real + 1])
        np.testing.assert_allclose(back.numpy(), again, atol=1e-7)


@pytest.mark.parametrize("frame", FRAMES)
def test_deltas_in_degrees_become_relative_in_the_other_frame(frame):
    other = FRAMES[frame == "world"]
    source = record("source", "euler_xyz", "delta", frame, "deg")
    target = record("target", "axis_angle", "relative", other)
    target = replace(target, state_names=None, state_units=None, state_dim=None)
    data = make_data(source, "delta", frame, "euler_xyz", "deg")
    found = source.conversion_to(target)(data)["action_chunk"][0]
    steps = measured(TARGETS, BASE, "relative", other)
    wanted = with_place(steps, "axis_angle", places_of("relative"))
    torch.testing.assert_close(found, wanted, atol=1e-7, rtol=0)


def test_one_frame_becomes_the_other():
    source = record("source", "axis_angle", "delta", "world")
    target = record("target", "axis_angle", "delta", "body")
    conversion = source.conversion_to(target)
    data = make_data(source, "delta", "world", "axis_angle")
    found = conversion(data)["action_chunk"][0]
    steps = measured(TARGETS, BASE, "delta", "body")
    wanted = with_place(steps, "axis_angle", places_of("delta"))
    torch.testing.assert_close(found, wanted, atol=1e-7, rtol=0)
    assert conversion.metadata.rotations == target.rotations
    assert not conversion.plan.is_affine


def test_a_frame_that_one_side_declares_holds_for_both():
    source = record("source", "axis_angle", "delta", "body")
    target = record("target", "axis_angle", "absolute")
    conversion = source.conversion_to(target)
    data = make_data(source, "delta", "body", "axis_angle")
    found = conversion(data)["action_chunk"][0]
    wanted = with_place(TARGETS, "axis_angle", places_of("absolute"))
    torch.testing.assert_close(found, wanted, atol=1e-7, rtol=0)
    target.check_compatible(replace(target, rotations=source.rotations))


def test_a_padded_delta_turns_nothing():
    source = record("source", "quaternion_wxyz", "absolute")
    target = record("target", "quaternion_wxyz", "delta", "body")
    data = make_data(source, "absolute", None, "quaternion_wxyz")
    data["action_is_pad"] = torch.tensor([[False, False, True]])
    conversion = source.conversion_to(target)
    steps = conversion(data)
    close = torch.testing.assert_close
    no_turn = torch.tensor([1.0, 0.0, 0.0, 0.0]).double()
    close(steps["action_chunk"][0, 2, 1:], no_turn, atol=1e-12, rtol=0)
    steps["action_chunk"][0, 2, 1:] = torch.tensor([0.0, 1.0, 0.0, 0.0])  # not read
    back = conversion.to_source(steps)["action_chunk"][0]
    close(back[2, 1:].abs(), back[1, 1:].abs(), atol=1e-12, rtol=0)


def test_resampled_deltas_turn_at_the_same_speed():
    slow = record("slow", "axis_angle", "delta", "body", control_frequency_hz=5.0)
    fast = record("fast", "axis_angle", "delta", "body", control_frequency_hz=10.0)
    chunk = torch.zeros(1, 3, 4).double()
    chunk[0, :, 3] = 0.4  # rad a step about z
    zero = torch.zeros(1, 4).double()
    data = {"action_chunk": chunk, "previous_action": zero}
    found = slow.conversion_to(fast)(TensorDict(data, [1]))["action_chunk"][0]
    wanted = torch.tensor([0.4, 0.2, 0.2, 0.2, 0.2]).double()
    torch.testing.assert_close(found[:, 3], wanted)


def test_an_undeclared_frame_is_refused_with_the_way_out():
    source = record("source", "axis_angle", "delta")
    with pytest.raises(IncompatibleMetadataError, match="frame='body' where target ="):
        source.conversion_to(record("target", "axis_angle", "absolute"))


def test_a_rotation_of_two_references_is_refused():
    mixed = ("absolute", "delta", "absolute", "absolute")
    source = record("source", "axis_angle", mixed, "body")
    with pytest.raises(IncompatibleMetadataError, match="declare one reference for"):
        source.conversion_to(record("target", "axis_angle", "absolute"))


def test_two_frames_are_two_conventions():
    ours, theirs = (record("r", "axis_angle", "delta", frame) for frame in FRAMES)
    with pytest.raises(IncompatibleMetadataError, match="rotations in another layout"):
        ours.check_compatible(theirs)
    ours.check_compatible(record("r", "axis_angle", "delta"))


def test_a_frame_is_kept_as_json_and_a_wrong_one_is_refused():
    metadata = record("r", "axis_angle", "delta", "body")
    assert RobotDatasetMetadata.from_json(metadata.to_json()) == metadata
    with pytest.raises(MetadataError, match=r"frame of .*'body'.*, got 'tool'. Leave"):
        RotationConvention((0, 1, 2), "axis_angle", "tool")


def test_the_command_before_is_composed():
    metadata = record("robot", "axis_angle", "delta", "world")
    transform = PreviousAction(metadata)
    quarter_x = torch.tensor([[0.0, torch.pi / 2, 0.0, 0.0]])
    quarter_z = torch.tensor([[0.0, 0.0, 0.0, torch.pi / 2]])
    command = transform._command(quarter_z, quarter_x)
    wanted = Rotation.from_euler("z", 90, True) * Rotation.from_euler("x", 90, True)
    np.testing.assert_allclose(command[0, 1:].numpy(), wanted.as_rotvec(), atol=1e-6)
    with pytest.raises(MetadataError, match=r"frame None at dimensions \(1, 2, 3\)"):
        PreviousAction(record("robot", "axis_angle", "delta"))
