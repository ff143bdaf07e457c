from __future__ import annotations

from dataclasses import replace
from math import pi

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import (
    Compose,
    GymEnv,
    InitTracker,
    TransformedEnv,
    check_env_specs,
)

from torchrl_vla.envs import ToyVLAEnv
from torchrl_vla.execution import MultiAction
from torchrl_vla.schema import (
    FeatureStatistics,
    GripperConvention,
    IncompatibleMetadataError,
    MetadataError,
    MissingKeyError,
    RobotDatasetMetadata,
    RotationConvention,
    SchemaError,
    SpaceError,
    environment_metadata,
)
from torchrl_vla.testing import check_transform
from torchrl_vla.transforms import (
    ActionScaling,
    PreviousAction,
    RobotConversion,
    StateScaling,
)

NAMES = ("shoulder", "elbow", "gripper")
ARM = RobotDatasetMetadata(
    "arm",
    action_names=NAMES,
    action_units=("deg", "deg", "1"),
    action_reference="absolute",
    grippers=(GripperConvention(2, open=1.0, closed=0.0),),
    action_low=(-180.0, -90.0, 0.0),
    action_high=(180.0, 90.0, 1.0),
    state_names=NAMES,
    state_units=("deg", "deg", "1"),
    control_frequency_hz=10.0,
    cameras=("front", "wrist"),
)
POLICY = RobotDatasetMetadata(
    "policy",
    action_names=("gripper", "elbow", "shoulder"),
    action_units=("1", "rad", "rad"),
    action_reference="absolute",
    grippers=(GripperConvention(0, open=-1.0, closed=1.0),),
    state_names=("elbow", "shoulder", "gripper"),
    state_units=("rad", "rad", "1"),
    control_frequency_hz=10.0,
    cameras=("wrist", "front"),
)
RELATIVE = replace(ARM, dataset_id="relative", action_reference=("relative",) * 3)
DELTA = replace(ARM, dataset_id="delta", action_reference=("delta",) * 3)


def frames():
    return TensorDict(
        {
            "action": torch.tensor([[90.0, -45.0, 0.25]]),
            "action_chunk": torch.tensor([[[90.0, -45.0, 0.25], [180.0, 0.0, 1.0]]]),
            "action_is_pad": torch.tensor([[False, False]]),
            "observation": {"state": torch.tensor([[45.0, 90.0, 0.5]])},
            "previous_action": torch.tensor([[80.0, -40.0, 0.5]]),
            "next": {"observation": {"state": torch.tensor([[90.0, 0.0, 1.0]])}},
        },
        [1],
    )


def close(value, expected):
    torch.testing.assert_close(value, torch.tensor(expected), rtol=0, atol=1e-5)


def test_order_units_and_grippers_change_together():
    data = ARM.conversion_to(POLICY)(frames())
    # gripper: 0.25 open = a quarter of the way from closed (1) to open (-1).
    close(data["action"], [[0.5, -pi / 4, pi / 2]])
    close(data["action_chunk"], [[[0.5, -pi / 4, pi / 2], [-1.0, 0.0, pi]]])
    close(data["observation", "state"], [[pi / 2, pi / 4, 0.5]])
    close(data["next", "observation", "state"], [[0.0, pi / 2, 1.0]])


@pytest.mark.parametrize(
    "target", [POLICY, RELATIVE, DELTA], ids=lambda m: m.dataset_id
)
def test_to_source_undoes_to_target(target):
    conversion = ARM.conversion_to(target)
    back = conversion.to_source(conversion(frames()))
    for key, value in frames().items(True, True):
        torch.testing.assert_close(back[key], value, rtol=1e-5, atol=1e-4)


def test_the_converted_record_is_compatible_and_its_numbers_are_those_of_the_data():
    samples = torch.tensor([[90.0, -45.0, 0.25], [180.0, 0.0, 1.0], [-10.0, 3.0, 0.0]])
    source = replace(ARM, action_statistics=FeatureStatistics.from_samples(samples))
    conversion = source.conversion_to(POLICY)
    converted = conversion(TensorDict({"action": samples.double()}, [3]))["action"]
    expected = FeatureStatistics.from_samples(converted)
    found = conversion.metadata.action_statistics
    for name in ("mean", "std", "min", "max", "q01", "q99"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    POLICY.check_compatible(conversion.metadata)
    assert conversion.metadata.action_low == pytest.approx((-1.0, -pi / 2, -pi))
    assert conversion.metadata.action_high == pytest.approx((1.0, pi / 2, pi))
    assert conversion.metadata.dataset_id == "arm"


def test_statistics_of_relative_actions_are_not_those_of_absolute_ones():
    stats = FeatureStatistics.from_samples(torch.randn(9, 3))
    conversion = replace(ARM, action_statistics=stats).conversion_to(RELATIVE)
    assert conversion.metadata.action_statistics is None
    with pytest.raises(MetadataError, match=r"references or rates.*from_samples"):
        conversion.convert_statistics(stats)


def test_a_chunk_is_measured_from_the_state_it_was_made_in():
    data = ARM.conversion_to(RELATIVE)(frames())
    close(data["action_chunk"], [[[45.0, -135.0, -0.25], [135.0, -90.0, 0.5]]])
    close(data["action_base"], [[45.0, 90.0, 0.5]])


def test_deltas_are_measured_from_the_command_before():
    data = ARM.conversion_to(DELTA)(frames())
    close(data["action_chunk"], [[[10.0, -5.0, -0.25], [90.0, 45.0, 0.75]]])
    close(data["action"], [[10.0, -5.0, -0.25]])


def test_padded_actions_are_never_mixed_in():
    data = frames()
    data["action_is_pad"] = torch.tensor([[False, True]])
    data["action_chunk"][:, 1] = float("nan")
    absolute = DELTA.conversion_to(ARM)(data)
    # 80 + 90 and so on; the padded slot repeats the last command.
    close(absolute["action_chunk"][0, 0], [170.0, -85.0, 0.75])
    close(absolute["action_chunk"][0, 1], [170.0, -85.0, 0.75])
    data["action_chunk"][:, 1] = 7.0
    deltas = ARM.conversion_to(DELTA)(data)
    close(deltas["action_chunk"][0, 1], [0.0, 0.0, 0.0])


def test_deltas_without_the_command_before_raise():
    data = frames().exclude("previous_action")
    with pytest.raises(MissingKeyError, match=r"previous_action.*PreviousAction\(env"):
        ARM.conversion_to(DELTA)(data)


def test_relative_actions_without_a_state_raise():
    data = frames().exclude("observation")
    with pytest.raises(MissingKeyError, match="the state that actions are measured"):
        ARM.conversion_to(RELATIVE)(data)


@pytest.mark.parametrize(
    "target", [RELATIVE, replace(ARM, control_frequency_hz=20.0)], ids=["state", "rate"]
)
def test_frames_without_chunks_are_refused_where_chunks_are_needed(target):
    # Gathered later, each action of a chunk would be measured from a state of its own.
    with pytest.raises(
        MissingKeyError, match=r"after ActionChunkTransform\(chunk_size"
    ):
        ARM.conversion_to(target)(frames().exclude("action_chunk"))


def test_a_chunk_is_resampled_and_its_first_action_keeps_its_time():
    faster = replace(ARM, dataset_id="faster", control_frequency_hz=20.0)
    data = ARM.conversion_to(faster)(frames())
    expected = [[90.0, -45.0, 0.25], [135.0, -22.5, 0.625], [180.0, 0.0, 1.0]]
    close(data["action_chunk"], [expected])
    assert data["action_is_pad"].tolist() == [[False] * 3]
    back = ARM.conversion_to(faster).to_source(data)
    close(back["action_chunk"], frames()["action_chunk"].tolist())


def test_deltas_are_resampled_as_the_targets_they_lead_to():
    faster = replace(DELTA, dataset_id="faster", control_frequency_hz=20.0)
    data = frames()
    data["action_chunk"] = torch.tensor([[[10.0, 0.0, 0.0], [4.0, 0.0, 0.0]]])
    data["previous_action"] = torch.zeros(1, 3)
    steps = DELTA.conversion_to(faster)(data)["action_chunk"][0, :, 0]
    close(steps, [10.0, 2.0, 2.0])


def test_rotations_change_their_layout_beside_the_rest():
    axis_angle = RobotDatasetMetadata(
        "axis_angle",
        action_names=("x", "rx", "ry", "rz", "gripper"),
        action_units=("m", "deg", "deg", "deg", "1"),
        rotations=(RotationConvention((1, 2, 3), "axis_angle"),),
    )
    six = RobotDatasetMetadata(
        "six",
        action_names=("a", "b", "c", "d", "e", "f", "gripper", "x"),
        action_units=("1",) * 7 + ("cm",),
        rotations=(RotationConvention(tuple(range(6)), "rotation_6d_columns"),),
    )
    conversion = axis_angle.conversion_to(six)
    data = TensorDict({"action": torch.tensor([[0.5, 0.0, 0.0, 90.0, 0.7]])}, [1])
    close(conversion(data)["action"], [[0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.7, 50.0]])
    close(conversion.to_source(conversion(data))["action"], data["action"].tolist())
    assert conversion.metadata.action_dim == 8
    with pytest.raises(MetadataError, match="rotations"):
        conversion.convert_statistics(FeatureStatistics.from_samples(torch.randn(5, 5)))


def test_resampled_rotations_turn_instead_of_being_averaged():
    def record(name, rate_hz):
        return RobotDatasetMetadata(
            name,
            action_dim=4,
            action_reference="absolute",
            rotations=(RotationConvention((0, 1, 2, 3), "quaternion_wxyz"),),
            control_frequency_hz=rate_hz,
        )

    half_turn = torch.tensor([[[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]])
    conversion = record("slow", 5.0).conversion_to(record("fast", 10.0))
    data = conversion(TensorDict({"action_chunk": half_turn}, [1]))
    close(data["action_chunk"][0, 1], [0.5**0.5, 0.0, 0.0, 0.5**0.5])


UNITLESS = replace(ARM, dataset_id="unitless", action_units="1")
IMPOSSIBLE = {
    "another robot": (
        replace(ARM, embodiment_id="a"),
        replace(ARM, embodiment_id="b"),
        "embodiment_id: 'a' against 'b'",
    ),
    "degrees to unitless": (ARM, UNITLESS, "action_units: 'deg' at dimension 0"),
    "a joint too many": (
        ARM,
        RobotDatasetMetadata("d", action_dim=4),
        "action_dim: 3 against 4",
    ),
    "other names": (
        ARM,
        replace(ARM, action_names=("shoulder", "wrist", "gripper")),
        r"action_names: \['elbow'\] on one side only, \['wrist'\]",
    ),
    "other cameras": (
        ARM,
        replace(ARM, cameras=("top",)),
        "cameras: .*RenameTransform",
    ),
    "kinematics": (
        replace(ARM, action_space="joint"),
        replace(ARM, action_space="end_effector"),
        "action_space: 'joint' against 'end_effector' in 3",
    ),
    "a gripper on one side": (
        ARM,
        replace(ARM, grippers=(GripperConvention(1, open=1.0, closed=0.0),)),
        "grippers: dimension 1 against 1",
    ),
    "no state to measure from": (
        replace(ARM, state_names=("a", "b", "c")),
        replace(RELATIVE, state_names=None),
        r"action_reference: dimension 0 \('shoulder'\) is measured from the state",
    ),
    "a delta of unknown kind": (
        replace(ARM, action_reference=None),
        replace(ARM, control_frequency_hz=50.0),
        "action_reference: undeclared",
    ),
    "a rate of undeclared actions": (
        RobotDatasetMetadata("a", control_frequency_hz=5.0),
        RobotDatasetMetadata("b", control_frequency_hz=50.0),
        "action_reference: undeclared",
    ),
    "angles of unknown unit": (
        RobotDatasetMetadata(
            "e", action_dim=3, rotations=(RotationConvention((0, 1, 2), "euler_xyz"),)
        ),
        RobotDatasetMetadata(
            "q",
            action_dim=4,
            rotations=(RotationConvention((0, 1, 2, 3), "quaternion_wxyz"),),
        ),
        "action_units: expected one unit of angles for the euler_xyz",
    ),
    "a relative rotation": (
        RobotDatasetMetadata(
            "a",
            action_dim=3,
            action_reference="absolute",
            rotations=(RotationConvention((0, 1, 2), "axis_angle"),),
        ),
        RobotDatasetMetadata(
            "r",
            action_dim=3,
            action_reference="relative",
            rotations=(RotationConvention((0, 1, 2), "axis_angle"),),
        ),
        "no side says about which axes it turns: declare RotationConvention",
    ),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_cannot_be_converted_is_listed(name):
    source, target, message = IMPOSSIBLE[name]
    with pytest.raises(
        IncompatibleMetadataError, match=f"(?s)without a conv.*{message}"
    ):
        source.conversion_to(target)
    # check_compatible promises no conversion where there is none.
    with pytest.raises(IncompatibleMetadataError) as raised:
        target.check_compatible(source)
    assert "conversion_to" not in str(raised.value)


def test_every_impossible_difference_is_listed_at_once():
    target = replace(UNITLESS, cameras=("top",), embodiment_id="b")
    with pytest.raises(IncompatibleMetadataError) as raised:
        replace(ARM, embodiment_id="a").conversion_to(target)
    for field in ("embodiment_id", "cameras", "action_units"):
        assert f"- {field}: " in str(raised.value)


def test_incompatible_metadata_name_the_conversion_where_there_is_one():
    message = r"All of them have a conversion: .*theirs\.conversion_to\(ours\)"
    with pytest.raises(IncompatibleMetadataError, match=f"(?s){message}"):
        POLICY.check_compatible(ARM)


WRONG_DATA = {
    "width": ({"action": torch.zeros(1, 4)}, r"width 3 .* 'action', got shape \(1, 4"),
    "integers": (
        {"action": torch.zeros(1, 3, dtype=torch.int64)},
        r"expected floats .* 'action', got .*int64",
    ),
    "state": (
        {"observation": {"state": torch.zeros(1, 2)}},
        r"width 3 at \('observation', 'state'\)",
    ),
    "single action in chunks": (
        {"action": torch.zeros(1, 2, 3)},
        r"with 2 dimensions at 'action', got shape \(1, 2, 3\)",
    ),
    "chunk without time": (
        {"action_chunk": torch.zeros(1, 3)},
        r"with 3 dimensions at 'action_chunk'",
    ),
    "mask of another length": (
        {"action_is_pad": torch.zeros(1, 3, dtype=torch.bool)},
        r"expected bool \(1, 2\) at 'action_is_pad', got torch.bool \(1, 3\)",
    ),
    "mask of numbers": (
        {"action_is_pad": torch.zeros(1, 2)},
        r"expected bool \(1, 2\) at 'action_is_pad', got torch.float32",
    ),
}


@pytest.mark.parametrize("name", WRONG_DATA)
def test_data_that_are_not_what_the_metadata_say_raise(name):
    entries, message = WRONG_DATA[name]
    data = frames().update(TensorDict(entries, [1]))
    with pytest.raises(SchemaError, match=message):
        ARM.conversion_to(DELTA if name != "state" else POLICY)(data)


@pytest.mark.parametrize("other", [None, 3, "arm", {"action_dim": 3}])
def test_what_is_no_record_raises(other):
    for method in (ARM.conversion_to, ARM.check_compatible):
        with pytest.raises(
            MetadataError, match=r"'arm': expected another record .*got"
        ):
            method(other)


def test_equal_records_convert_to_the_same_numbers():
    data = ARM.conversion_to(ARM)(frames())
    for key, value in frames().items(True, True):
        assert torch.equal(data[key], value)


def test_what_the_target_leaves_open_moves_with_its_dimension():
    order = RobotDatasetMetadata("order", action_names=NAMES[::-1])
    converted = ARM.conversion_to(order).metadata
    assert converted.action_units == ("1", "deg", "deg")
    assert converted.grippers == (GripperConvention(0, open=1.0, closed=0.0),)
    assert converted.action_high == (1.0, 90.0, 180.0)


def test_data_with_nothing_to_convert_raise():
    with pytest.raises(MissingKeyError, match=r"expected one of .*in the data, got"):
        ARM.conversion_to(POLICY)(TensorDict({"actions": torch.zeros(1, 3)}, [1]))


# On a buffer and in an environment.

TOY = replace(ARM, dataset_id="toy", action_units=("cm",) * 3, grippers=())
TOY = replace(
    TOY, state_units=("cm",) * 3, action_low=(-1.0,) * 3, action_high=(1.0,) * 3
)
METERS = RobotDatasetMetadata(
    "meters",
    action_names=NAMES[::-1],
    action_units="m",
    action_reference="absolute",
    state_names=NAMES[::-1],
    state_units="m",
)


def toy():
    return ToyVLAEnv(3, 3, batch_size=[2], seed=0)


def test_a_buffer_keeps_the_source_and_samples_the_target():
    conversion = ARM.conversion_to(POLICY)
    storage = LazyTensorStorage(1)
    buffer = TensorDictReplayBuffer(storage=storage, transform=conversion, batch_size=1)
    buffer.extend(frames())
    assert torch.equal(storage[:]["action"], frames()["action"])
    close(buffer.sample()["action"], [[0.5, -pi / 4, pi / 2]])


def test_the_robot_gets_the_policys_action_in_its_own_convention():
    env = TransformedEnv(toy(), TOY.conversion_to(METERS))
    check_env_specs(env)
    step = env.reset()
    step["action"] = torch.tensor([0.003, 0.002, 0.001]).expand(2, 3).clone()
    after = env.step(step)["next"]
    # The toy echoes what it executed, 0.1, 0.2 and 0.3 cm; the policy sees meters.
    close(after["observation", "state"], [[0.003, 0.002, 0.001]] * 2)
    spec = env.action_spec
    close(spec.space.high, [[0.01] * 3] * 2)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-1, 1, width=16), min_size=3, max_size=3))
def test_what_data_convert_the_environment_converts_back(action):
    conversion = TOY.conversion_to(METERS)
    data = conversion(TensorDict({"action": torch.tensor([action, action])}, [2]))
    base = toy()
    env = TransformedEnv(base, conversion)
    step = env.step(env.reset().set("action", data["action"]))
    echoed = conversion.to_source(step["next"])["observation", "state"]
    close(echoed[0], action)


def test_the_transform_keeps_its_contract():
    data = TensorDict(
        {"action": torch.rand(2, 3), "observation": {"state": torch.rand(2, 3)}}, [2]
    )
    keys = ["action", ("observation", "state")]
    check_transform(TOY.conversion_to(METERS), data, reads=keys, writes=keys, env=toy())


def test_relative_chunks_reach_the_robot_as_absolute_targets_even_of_a_scaled_state():
    relative = replace(TOY, dataset_id="r", action_reference=("relative",) * 3)
    chain = Compose(MultiAction(2), TOY.conversion_to(relative), StateScaling(3.0, 7.0))
    env = TransformedEnv(toy(), chain)
    check_env_specs(env)
    step = env.reset()
    step["action_chunk"] = torch.full((2, 2, 3), 0.25)
    step = env.step(step)["next"]  # the toy starts at 0
    close(step["action_base"], [[0.25] * 3] * 2)
    step["action_chunk"] = torch.full((2, 2, 3), 0.25)
    close(env.step(step)["next", "action_base"], [[0.5] * 3] * 2)


@pytest.mark.parametrize(
    "target",
    [
        replace(TOY, action_reference=("relative",) * 3),
        replace(TOY, control_frequency_hz=20.0),
    ],
    ids=["relative", "rate"],
)
def test_single_actions_are_refused_where_whole_chunks_are_needed(target):
    env = TransformedEnv(toy(), TOY.conversion_to(target))
    with pytest.raises(SpaceError, match=r"whole chunks.*ConvertedPolicy\(policy"):
        env.rollout(1)


def test_a_policy_at_another_rate_fills_the_environments_chunk():
    target = replace(TOY, dataset_id="t", control_frequency_hz=20.0)
    env = TransformedEnv(toy(), Compose(MultiAction(3), TOY.conversion_to(target)))
    check_env_specs(env)
    leaf = env.full_action_spec["action_chunk"]
    assert leaf.shape == (2, 5, 3)
    assert leaf.space.high.unique().item() == 1.0  # between two bounds lies neither
    step = env.reset()
    step["action_chunk"] = torch.linspace(0.0, 0.4, 5).view(1, 5, 1).expand(2, 5, 3)
    after = env.step(step)["next"]
    close(after["observation", "state"], [[0.4] * 3] * 2)
    assert after["executed_steps"].tolist() == [[3], [3]]
    half = replace(TOY, dataset_id="h", control_frequency_hz=5.0)
    env = TransformedEnv(toy(), Compose(MultiAction(2), TOY.conversion_to(half)))
    with pytest.raises(SpaceError, match="fill 2 actions of the environment"):
        env.rollout(1)


def test_a_delta_policy_moves_an_absolute_robot_from_its_last_command():
    delta = replace(TOY, dataset_id="d", action_reference=("delta",) * 3)
    chain = Compose(PreviousAction(TOY), TOY.conversion_to(delta))
    env = TransformedEnv(toy(), chain)
    check_env_specs(env)
    step = env.reset()
    for total in (0.25, 0.5, 0.75):
        step["action"] = torch.full((2, 3), 0.25)
        step = env.step(step)["next"]
        close(step["observation", "state"], [[total] * 3] * 2)
        close(step["previous_action"], [[total] * 3] * 2)


def test_an_absolute_policy_moves_a_delta_robot():
    delta = replace(TOY, dataset_id="d", action_reference=("delta",) * 3)
    chain = Compose(PreviousAction(delta), delta.conversion_to(TOY))
    env = TransformedEnv(toy(), chain)
    step = env.reset()
    echoed = []
    for target in (0.25, 0.75, 0.5):
        step["action"] = torch.full((2, 3), target)
        step = env.step(step)["next"]
        echoed.append(step["observation", "state"][0, 0].item())
        close(step["previous_action"], [[target] * 3] * 2)
    assert echoed == pytest.approx([0.25, 0.5, -0.25])


# Among other transforms.


def test_a_conversion_after_a_scaling_is_refused():
    conversion = TOY.conversion_to(METERS)
    for scaling in (ActionScaling(0.0, 2.0), StateScaling(0.0, 2.0)):
        with pytest.raises(SpaceError, match=r"in robot space, .*before the scalings"):
            Compose(scaling, conversion.clone())
        Compose(conversion.clone(), scaling)


def test_a_scaling_that_is_put_before_it_later_is_refused_at_the_first_use():
    env = TransformedEnv(toy(), TOY.conversion_to(METERS))
    env.insert_transform(0, ActionScaling(0.0, 2.0))
    with pytest.raises(SpaceError, match="before the scalings"):
        env.rollout(1)


def test_converting_twice_is_refused_and_converting_on_is_not():
    first, second = TOY.conversion_to(METERS), TOY.conversion_to(METERS)
    with pytest.raises(
        SpaceError, match=r"(?s)got data of 'toy' that differ.*action_u"
    ):
        Compose(first, second)
    on = TOY.conversion_to(METERS)
    back = on.metadata.conversion_to(TOY)
    data = TensorDict({"action": torch.rand(2, 3)}, [2])
    again = Compose(on, back)(data)
    torch.testing.assert_close(again["action"], data["action"])


def test_an_environment_of_other_metadata_is_refused():
    base = toy()
    base.metadata = replace(TOY, control_frequency_hz=50.0)
    with pytest.raises(SpaceError, match=r"(?s)that differ.*control_frequency_hz"):
        TransformedEnv(base, TOY.conversion_to(METERS)).rollout(1)


def test_an_environments_metadata_are_those_that_its_policy_meets():
    env = TransformedEnv(toy(), InitTracker())
    declared = environment_metadata(env)
    assert replace(declared, image_sizes=None) == toy().metadata
    env.append_transform(TOY.conversion_to(METERS))
    METERS.check_compatible(environment_metadata(env))
    assert environment_metadata(GymEnv("Pendulum-v1")) is None


def test_the_conversion_shows_what_it_leads_to():
    assert repr(ARM.conversion_to(POLICY)) == "RobotConversion('arm' -> 'policy')"
    assert isinstance(ARM.conversion_to(POLICY), RobotConversion)
