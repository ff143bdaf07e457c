from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.envs import ExcludeTransform, SerialEnv, TransformedEnv
from torchrl.envs.transforms import ObservationTransform
from torchrl.envs.transforms._base import _apply_to_composite

from torchrl_vla.envs import TabletopEnv
from torchrl_vla.schema import (
    FeatureStatistics,
    IncompatibleMetadataError,
    RobotDatasetMetadata,
    SchemaError,
    check_image_sizes,
    check_meeting,
    check_robot_metadata,
    environment_metadata,
    mark_metadata,
    metadata_of,
    with_image_sizes,
)
from torchrl_vla.schema.conventions import GripperConvention

ARM = RobotDatasetMetadata(
    "arm",
    embodiment_id="arm",
    action_dim=2,
    action_names=("dx", "dy"),
    action_units=("m", "m"),
    action_reference=("delta", "delta"),
    action_space=("end_effector", "end_effector"),
    grippers=(GripperConvention(dim=1, open=1.0, closed=0.0),),
    action_low=(-1.0, -1.0),
    action_high=(1.0, 1.0),
    state_dim=1,
    state_names=("x",),
    state_units=("m",),
    control_frequency_hz=10.0,
    cameras=("front",),
    image_sizes=((3, 16, 24),),
)
#: Each field that changes what a number means, and another value of it.
OTHERS = {
    "embodiment_id": "another arm",
    "action_names": ("dy", "dx"),
    "action_units": ("m", "cm"),
    "action_reference": ("delta", "absolute"),
    "action_space": ("end_effector", "joint"),
    "grippers": (GripperConvention(dim=1, open=0.0, closed=1.0),),
    "state_names": ("y",),
    "state_units": ("cm",),
    "control_frequency_hz": 50.0,
    "cameras": ("wrist",),
    "image_sizes": ((16, 24, 3),),
}


class Halve(ObservationTransform):
    """Leave every second row and column of an image out."""

    def _apply_transform(self, obs):
        return obs[..., ::2, ::2]

    _reset = ObservationTransform._call

    @_apply_to_composite
    def transform_observation_spec(self, observation_spec):
        return observation_spec[..., ::2, ::2].clone()


def policy_trained_on(metadata, in_keys=(("observation", "image"),)):
    policy = TensorDictModule(torch.nn.Identity(), list(in_keys), ["action_chunk"])
    mark_metadata(policy, metadata)
    return policy


@given(st.sets(st.sampled_from(sorted(OTHERS))), st.booleans())
def test_every_difference_is_refused_by_its_name_and_equal_records_pass(
    changed, swapped
):
    pair = ARM, replace(ARM, **{name: OTHERS[name] for name in changed})
    trained, robot = pair[::-1] if swapped else pair
    for check in (check_robot_metadata, lambda _, a, b: a.check_compatible(b)):
        if not changed:
            check("evaluate", trained, robot)
            continue
        with pytest.raises(IncompatibleMetadataError) as error:
            check("evaluate", trained, robot)
        named = {line.split(":")[0] for line in str(error.value).split("\n  - ")[1:]}
        assert named == changed


@given(st.sets(st.sampled_from(sorted(OTHERS))))
def test_what_one_side_leaves_undeclared_is_not_compared(changed):
    empty = {"grippers": (), "cameras": ()}
    hidden = {name: empty.get(name) for name in changed}
    robot = replace(ARM, **{name: OTHERS[name] for name in changed})
    check_robot_metadata("evaluate", replace(ARM, **hidden), robot)
    check_robot_metadata("evaluate", robot, replace(ARM, **hidden))


@pytest.mark.parametrize(
    ("low", "high", "named"),
    [(-2.0, 1.0, "action_low"), (-1.0, 1.2, "action_high"), (-0.5, 0.5, None)],
)
def test_declared_actions_have_to_lie_within_the_robots_limits(low, high, named):
    trained = replace(ARM, action_low=(low, -1.0), action_high=(high, 1.0))
    if named is None:
        return check_robot_metadata("evaluate", trained, ARM)
    with pytest.raises(
        IncompatibleMetadataError, match=rf"{named}: .*dimensions \[0\]"
    ):
        check_robot_metadata("evaluate", trained, ARM)


def test_measured_degrees_are_refused_by_a_robot_of_radians_without_any_unit():
    degrees = torch.linspace(-90.0, 90.0, 101).unsqueeze(-1)
    trained = RobotDatasetMetadata(
        "degrees", action_statistics=FeatureStatistics.from_samples(degrees)
    )
    robot = RobotDatasetMetadata(
        "radians", action_dim=1, action_low=(-3.14,), action_high=(3.14,)
    )
    with pytest.raises(IncompatibleMetadataError, match="98 % of the training's"):
        check_robot_metadata("load_executor", trained, robot)
    noisy = FeatureStatistics.from_samples(degrees / 18)  # -5 to 5: outliers
    check_robot_metadata(
        "load_executor", replace(trained, action_statistics=noisy), robot
    )


def test_free_names_of_data_without_units_are_passed_over_but_not_their_order():
    free = RobotDatasetMetadata("lerobot", "so100", action_names=("j0", "j1"))
    robot = RobotDatasetMetadata("env", "pusher", action_names=("x", "y"))
    check_robot_metadata("load_executor", free, robot)
    with pytest.raises(IncompatibleMetadataError, match="action_names"):
        check_robot_metadata(
            "load_executor", free, replace(robot, action_names=("j1", "j0"))
        )
    with pytest.raises(IncompatibleMetadataError, match="embodiment_id"):
        check_robot_metadata(
            "load_executor", replace(free, action_units=("m", "m")), robot
        )


def test_an_environment_declares_the_image_size_of_its_specs():
    env = TabletopEnv(2, image_size=16)
    assert environment_metadata(env).image_sizes == ((3, 16, 16),)
    key = ("observation", "image")
    halved = TransformedEnv(env, Halve(in_keys=[key], out_keys=[key]))
    assert environment_metadata(halved).image_sizes == ((3, 8, 8),)
    blind = TransformedEnv(env, ExcludeTransform(key))
    assert environment_metadata(blind).image_sizes is None


def test_an_environment_of_several_declares_the_metadata_of_the_first():
    env = SerialEnv(2, partial(TabletopEnv, 1, image_size=16))
    try:
        assert environment_metadata(env).control_frequency_hz == 10.0
    finally:
        env.close()


def test_a_policy_of_other_images_is_refused_unless_it_reads_none():
    env = TabletopEnv(2, image_size=16)
    trained = replace(env.metadata, image_sizes=((3, 24, 24),))
    with pytest.raises(
        IncompatibleMetadataError, match=r"evaluate: .*\n  - image_sizes: .*24.*16"
    ):
        check_meeting("evaluate", policy_trained_on(trained), env)
    blind = policy_trained_on(trained, [("observation", "state")])
    check_meeting("evaluate", blind, env)
    check_meeting("evaluate", TensorDictModule(torch.nn.Identity(), [], []), env)


def test_a_policy_is_not_trained_on_data_of_two_robots():
    policy = policy_trained_on(ARM)
    mark_metadata(policy, ARM)
    with pytest.raises(IncompatibleMetadataError, match=r"policy.training_metadata ="):
        mark_metadata(policy, replace(ARM, control_frequency_hz=50.0))
    policy.training_metadata = None
    mark_metadata(policy, replace(ARM, control_frequency_hz=50.0))
    assert metadata_of(policy).control_frequency_hz == 50.0


def test_a_compiled_policy_is_marked_inside():
    policy = TensorDictModule(torch.nn.Identity(), [], [])
    mark_metadata(torch.compile(policy), ARM)
    assert metadata_of(policy) == ARM


@pytest.mark.parametrize(
    ("cameras", "sizes", "expected"),
    [
        (("image",), {None: (3, 4, 5)}, ((3, 4, 5),)),
        (("b", "a"), {"a": (3, 1, 1), "b": (3, 2, 2)}, ((3, 2, 2), (3, 1, 1))),
        ((), {"b": (3, 2, 2), "a": (3, 1, 1)}, ((3, 1, 1), (3, 2, 2))),
        (("a", "b"), {"a": (3, 1, 1)}, None),
        ((), {}, None),
    ],
)
def test_image_sizes_are_in_the_order_of_the_cameras(cameras, sizes, expected):
    metadata = RobotDatasetMetadata("d", cameras=cameras)
    assert with_image_sizes(metadata, sizes).image_sizes == expected


@pytest.mark.parametrize("shape", [(16, 24, 3), (3, 24, 16), (1, 16, 24)])
def test_an_image_of_another_size_raises(shape):
    image = torch.zeros(2, *shape)
    for observation in ({"image": image}, {"image": {"front": image}}):
        step = TensorDict({"observation": observation}, [2])
        with pytest.raises(SchemaError, match=r"Policy: expected images .*'front'"):
            check_image_sizes("Policy", step, ARM)
    right = TensorDict({"observation": {"image": torch.zeros(2, 3, 16, 24)}}, [2])
    check_image_sizes("Policy", right, ARM)
    check_image_sizes("Policy", step, replace(ARM, image_sizes=None))


def test_images_of_another_size_name_the_option_and_no_conversion():
    small, large = (
        replace(ARM, image_sizes=((3, size, size),), cameras=()) for size in (16, 24)
    )
    with pytest.raises(IncompatibleMetadataError, match="--image-size") as caught:
        check_robot_metadata("evaluate", small, large)
    assert "conversion_to" not in str(caught.value)
