"""Any two records convert both ways, or are refused with a list of differences."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

from torchrl_vla.schema import (
    GripperConvention,
    IncompatibleMetadataError,
    RobotDatasetMetadata,
    RotationConvention,
)
from torchrl_vla.schema.conventions import (
    REFERENCES,
    ROTATION_FRAMES,
    ROTATION_LAYOUTS,
)
from torchrl_vla.transforms.conversions import ConversionPlan

PLAIN = ("x", "y", "gripper")


@st.composite
def records(draw):
    """A robot with three plain dimensions and, perhaps, a rotation among them."""
    names = list(draw(st.permutations(PLAIN)))
    at = draw(st.integers(0, 3))
    layout = draw(st.sampled_from([None, *ROTATION_LAYOUTS]))
    turning = [f"r{i}" for i in range(ROTATION_LAYOUTS.get(layout, 0))]
    names[at:at] = turning
    reference = draw(st.sampled_from(REFERENCES))
    angle = draw(st.sampled_from(["rad", "deg"]))
    length = draw(st.sampled_from(["m", "cm", "1"]))
    units = [
        angle if n in turning else "1" if n == "gripper" else length for n in names
    ]
    ends = draw(st.sampled_from([None, (0.0, 1.0), (1.0, -1.0), (0.0, 0.08)]))
    grippers = []
    if ends is not None:
        grippers = [GripperConvention(names.index("gripper"), *ends)]
    rotations = []
    if turning:
        dims = tuple(range(at, at + len(turning)))
        frame = draw(st.sampled_from([None, *ROTATION_FRAMES]))
        rotations = [RotationConvention(dims, layout, frame)]
    turning_reference = draw(st.sampled_from(["absolute", reference]))
    state_names = draw(st.permutations(PLAIN))
    state_units = [draw(st.sampled_from(["m", "cm", "1"]))] * 3
    if draw(st.booleans()):  # the state says where the rotation is, in its layout
        state_names, state_units = [*state_names, *turning], [*state_units]
        state_units += [angle] * len(turning)
    declared = draw(st.booleans())
    return RobotDatasetMetadata(
        draw(st.sampled_from(["a", "b"])),
        embodiment_id=draw(st.sampled_from([None, "arm"])),
        action_names=names if declared else None,
        action_dim=len(names),
        action_units=units,
        action_reference=[
            turning_reference
            if n in turning
            else "absolute"
            if n == "gripper"
            else reference
            for n in names
        ],
        grippers=grippers,
        rotations=rotations,
        state_names=state_names,
        state_units=state_units,
        control_frequency_hz=draw(st.sampled_from([None, 5.0, 10.0])),
    )


def make_data(record):
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        value = torch.rand(*shape, generator=generator, dtype=torch.float64)
        return value * 0.8 + 0.1  # small angles, quaternions and columns of some length

    data = TensorDict(
        {
            "action_chunk": random(2, 5, record.action_dim),
            "action": random(2, record.action_dim),
            "previous_action": random(2, record.action_dim),
            "action_is_pad": torch.tensor([[False] * 5, [False] * 3 + [True] * 2]),
            "observation": {"state": random(2, record.state_dim)},
        },
        [2],
    )
    for rotation in record.rotations:  # normalized, as every conversion writes them
        for key in ("action_chunk", "action", "previous_action"):
            data[key][..., rotation.dims] = unit(data[key], rotation)
    return data


def unit(value, rotation):
    turned = value[..., rotation.dims]
    if rotation.layout.startswith("quaternion"):
        return torch.nn.functional.normalize(turned, dim=-1)
    if rotation.layout.startswith("rotation_6d"):
        first = torch.nn.functional.normalize(turned[..., :3], dim=-1)
        second = (
            turned[..., 3:] - (turned[..., 3:] * first).sum(-1, keepdim=True) * first
        )
        return torch.cat([first, torch.nn.functional.normalize(second, dim=-1)], -1)
    return turned


@settings(max_examples=300, deadline=None)
@given(records(), records())
def test_any_two_records_convert_both_ways_or_are_refused_with_a_list(source, target):
    plan = ConversionPlan(source, target)
    if plan.problems:
        with pytest.raises(IncompatibleMetadataError) as raised:
            source.conversion_to(target)
        assert all(problem in str(raised.value) for problem in plan.problems)
        return
    conversion = source.conversion_to(target)
    target.check_compatible(conversion.metadata)
    data = make_data(source)
    there = conversion(data)
    assert there["action"].shape[-1] == conversion.metadata.action_dim
    assert there["action_chunk"].isfinite().all()
    back = conversion.to_source(there)
    keys = ["action", ("observation", "state"), "previous_action"]
    if plan.rate_ratio >= 1.0:  # fewer actions cannot give back more
        assert torch.equal(back["action_is_pad"], data["action_is_pad"])
        kept = ~data["action_is_pad"]
        torch.testing.assert_close(
            back["action_chunk"][kept], data["action_chunk"][kept]
        )
    for key in keys:
        torch.testing.assert_close(back[key], data[key])


def test_the_strategy_makes_pairs_of_both_kinds():
    found = {True: 0, False: 0}

    @settings(max_examples=100, database=None, deadline=None)
    @given(records(), records())
    def count(source, target):
        found[bool(ConversionPlan(source, target).problems)] += 1

    count()
    assert min(found.values()) >= 5


@settings(max_examples=50, deadline=None)
@given(records())
def test_a_record_converts_to_itself_without_a_change(record):
    conversion = record.conversion_to(record)
    data = make_data(record)
    for key, value in conversion(data).items(True, True):
        assert torch.equal(value, data[key])
    assert conversion.metadata == record
