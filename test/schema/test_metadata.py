from __future__ import annotations

import pytest
import torch
from torchrl.data import Bounded, Unbounded

from torchrl_vla.schema import (
    FeatureStatistics,
    GripperConvention,
    IncompatibleMetadataError,
    MetadataError,
    RobotDatasetMetadata,
    RotationConvention,
)


def statistics(dim: int, shift: float = 0.0) -> FeatureStatistics:
    samples = torch.arange(10.0).unsqueeze(-1).repeat(1, dim) / 3 + shift
    return FeatureStatistics.from_samples(samples)


def arm(**changes) -> RobotDatasetMetadata:
    fields = {
        "dataset_id": "bridge",
        "embodiment_id": "widowx",
        "action_names": ("x", "y", "z", "roll", "pitch", "yaw", "gripper"),
        "action_units": ("m", "m", "m", "rad", "rad", "rad", "1"),
        "action_reference": "delta",
        "action_space": (*("end_effector",) * 6, "gripper"),
        "rotations": (RotationConvention((3, 4, 5), "euler_xyz"),),
        "grippers": (GripperConvention(6, open=1.0, closed=0.0),),
        "action_low": (-1.0,) * 6 + (0.0,),
        "action_high": (1.0,) * 7,
        "state_names": ("j0", "j1"),
        "state_units": "rad",
        "control_frequency_hz": 5.0,
        "cameras": ("top", "wrist"),
        "action_statistics": statistics(7),
        "state_statistics": statistics(2),
    }
    return RobotDatasetMetadata(**{**fields, **changes})


def test_json_gives_back_every_bit():
    metadata = arm(action_low=(-1 / 3,) * 6 + (-1e-300,))
    again = RobotDatasetMetadata.from_json(metadata.to_json())
    assert again == metadata
    assert again.to_json() == metadata.to_json()


def test_json_is_read_from_a_path(tmp_path):
    (tmp_path / "metadata.json").write_text(arm().to_json())
    assert RobotDatasetMetadata.from_json(tmp_path / "metadata.json") == arm()


def test_a_field_of_another_version_is_named():
    with pytest.raises(MetadataError, match=r"got also \['colour'\]"):
        RobotDatasetMetadata.from_json('{"dataset_id": "d", "colour": 1}')


def test_dimensions_follow_from_what_has_a_length():
    metadata = arm()
    assert (metadata.action_dim, metadata.state_dim) == (7, 2)
    assert metadata.action_reference == ("delta",) * 7
    assert metadata.state_units == ("rad", "rad")
    assert metadata.gripper_dims == (6,)
    stats_only = RobotDatasetMetadata("d", action_statistics=statistics(3))
    assert stats_only.action_dim == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset_id": " "}, "expected a name at 'dataset_id'"),
        ({"action_dim": 6}, r"expected length action_dim=6, got \{'action_names': 7"),
        ({"action_dim": 0}, "expected a positive int at 'action_dim'"),
        ({"action_statistics": statistics(3)}, r"\{'action_statistics': 3\}"),
        ({"state_statistics": statistics(3)}, r"\{'state_statistics': 3\}"),
        ({"action_low": (1.0,) * 7}, r"action_low < action_high.*dimensions \[0, 1"),
        ({"action_low": (float("nan"),) * 7}, "expected finite action bounds"),
        ({"action_low": None}, "expected both of 'action_low' and 'action_high'"),
        ({"action_names": ("x",) * 7}, "expected different names"),
        ({"action_reference": "sideways"}, r"got \['sideways'\]"),
        ({"action_space": "tail"}, r"got \['tail'\]"),
        ({"grippers": (GripperConvention(5, 1, 0),)}, "in one rotation or gripper"),
        ({"grippers": (GripperConvention(9, 1, 0),)}, r"below action_dim=7, got \[9\]"),
        ({"control_frequency_hz": 0.0}, "expected control_frequency_hz > 0"),
        ({"control_frequency_hz": float("nan")}, "expected control_frequency_hz > 0"),
        ({"cameras": ("top", "top")}, "expected different cameras"),
        ({"cameras": "top"}, "expected a tuple at argument 'cameras'"),
    ],
)
def test_a_contradiction_is_refused(change, message):
    with pytest.raises(MetadataError, match=message):
        arm(**change)


def test_all_contradictions_are_listed_at_once():
    with pytest.raises(MetadataError, match=r"length action_dim.*_hz > 0"):
        arm(action_units=("m",), control_frequency_hz=-1.0)


def test_a_single_text_needs_a_dimension():
    with pytest.raises(MetadataError, match=r"Give action_dim="):
        RobotDatasetMetadata("d", action_units="rad")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": -1, "open": 1, "closed": 0}, "expected dim >= 0"),
        ({"dim": 0, "open": 1, "closed": 1}, "expected open and closed to differ"),
        ({"dim": 0, "open": float("inf"), "closed": 1}, "expected finite values"),
    ],
)
def test_a_gripper_that_says_nothing_is_refused(arguments, message):
    with pytest.raises(MetadataError, match=message):
        GripperConvention(**arguments)


def test_a_rotation_needs_the_dimensions_of_its_layout():
    with pytest.raises(MetadataError, match="expected 4 different dimensions"):
        RotationConvention((0, 1, 2), "quaternion_wxyz")
    with pytest.raises(MetadataError, match="expected a layout of"):
        RotationConvention((0, 1, 2), "euler")


def test_the_action_spec_has_the_declared_bounds():
    spec = arm().make_action_spec([4])
    assert isinstance(spec, Bounded)
    assert spec.shape == (4, 7)
    assert spec.dtype == torch.float32
    assert spec.space.low[2].tolist() == [-1.0] * 6 + [0.0]


def test_a_spec_without_bounds_is_unbounded():
    spec = arm(action_low=None, action_high=None).make_action_spec()
    assert isinstance(spec, Unbounded)
    assert spec.shape == (7,)
    assert arm().make_state_spec([3]).shape == (3, 2)


def test_a_spec_of_undeclared_size_is_refused():
    with pytest.raises(MetadataError, match="expected 'state_dim' to make a spec"):
        RobotDatasetMetadata("d", action_dim=2).make_state_spec()


def test_stacked_statistics_are_rows_of_one_tensordict():
    other = arm(action_statistics=statistics(7, shift=1.0))
    stacked = torch.stack([arm(), other])
    assert stacked.batch_size == (2,)
    assert torch.equal(stacked["action", "mean"][1], other.action_statistics.mean)
    assert stacked["state", "count"].tolist() == [10, 10]


def test_records_of_other_sizes_do_not_stack():
    small = RobotDatasetMetadata("small", action_dim=2)
    with pytest.raises(MetadataError, match=r"one action_dim, got \[7, 2\]"):
        RobotDatasetMetadata.stack([arm(), small])


def test_a_record_moves_with_its_statistics():
    # statistics on "meta" could not be checked for finiteness, so the CPU it is
    assert arm().to("cpu") == arm()
    assert arm().to("cpu").action_statistics.mean.device.type == "cpu"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"embodiment_id": "franka"}, "embodiment_id: 'widowx' against 'franka'"),
        (
            {"action_names": ("y", "x", "z", "roll", "pitch", "yaw", "gripper")},
            "action_names: .*another order",
        ),
        ({"action_units": "deg"}, "action_units: .*ratio of the units"),
        ({"action_reference": "absolute"}, "action_reference: .*read as steps"),
        ({"action_space": "joint"}, "action_space: .*joint values read as poses"),
        (
            {"rotations": (RotationConvention((3, 4, 5), "axis_angle"),)},
            "rotations: .*another layout",
        ),
        (
            {"grippers": (GripperConvention(6, open=0.0, closed=1.0),)},
            "grippers: .*opens when told to close",
        ),
        ({"control_frequency_hz": 10.0}, "control_frequency_hz: 5.0 against 10.0"),
        ({"cameras": ("wrist", "top")}, "cameras: .*another place"),
        ({"state_units": "deg"}, "state_units: .*ratio of the units"),
    ],
)
def test_a_difference_that_makes_data_wrong_is_refused(change, line):
    with pytest.raises(IncompatibleMetadataError, match=line):
        arm().check_compatible(arm(**change))


def test_every_difference_is_listed():
    other = arm(action_units="deg", control_frequency_hz=10.0)
    with pytest.raises(IncompatibleMetadataError, match=r"2 difference\(s\)"):
        arm().check_compatible(other)


def test_other_statistics_names_and_undeclared_fields_are_compatible():
    arm().check_compatible(
        arm(
            dataset_id="other",
            action_statistics=statistics(7, shift=3.0),
            control_frequency_hz=5.01,
            cameras=(),
            state_units=None,
        )
    )
