from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.envs import InitTracker, TransformedEnv

from torchrl_vla.envs import ToyVLAEnv
from torchrl_vla.execution import (
    ActionInterpolation,
    MultiStepActorWrapper,
    RealTimeChunking,
    TemporalEnsemble,
)
from torchrl_vla.schema import (
    FeatureStatistics,
    PolicySpace,
    RobotDatasetMetadata,
    SpaceError,
    mark_space,
)
from torchrl_vla.spaces import ConvertedPolicy, ModelSpace

ROBOT = RobotDatasetMetadata(
    "robot",
    action_names=("x", "y"),
    action_units="cm",
    action_reference="absolute",
    state_names=("x", "y"),
    state_units="cm",
    control_frequency_hz=10.0,
)
TRAINED = RobotDatasetMetadata(
    "trained",
    action_names=("y", "x"),
    action_units="m",
    action_reference="relative",
    state_names=("y", "x"),
    state_units="m",
)


def always(step, rows=2, keys=(("observation", "state"),)):
    """Make a policy whose chunk is the same step at every position."""

    def chunk(state):
        value = torch.tensor(step).expand(*state.shape[:-1], rows, len(step)).clone()
        return value

    policy = TensorDictModule(chunk, list(keys), ["action_chunk"])
    policy.chunk_size, policy.action_dim = rows, len(step)
    return policy


def seen(*state):
    return TensorDict({"observation": {"state": torch.tensor([state])}}, [1])


def test_relative_actions_become_absolute_targets_in_the_robots_units_and_order():
    policy = ConvertedPolicy(always([0.2, 0.1]), ROBOT.conversion_to(TRAINED))
    step = policy(seen(5.0, 7.0))
    expected = torch.tensor([[[15.0, 27.0]] * 2])
    torch.testing.assert_close(step["action_chunk"], expected)
    assert step["observation", "state"].tolist() == [[5.0, 7.0]]
    assert set(step.keys(True, True)) == {"action_chunk", ("observation", "state")}


def test_the_policy_sees_states_in_its_own_conventions():
    echo = TensorDictModule(
        lambda state: state.unsqueeze(-2), [("observation", "state")], ["action_chunk"]
    )
    absolute = replace(TRAINED, action_reference=("absolute",) * 2)
    policy = ConvertedPolicy(echo, ROBOT.conversion_to(absolute))
    torch.testing.assert_close(
        policy(seen(5.0, 7.0))["action_chunk"], torch.tensor([[[5.0, 7.0]]])
    )


def test_a_temporal_ensemble_averages_what_was_relative_to_different_states():
    policy = ConvertedPolicy(always([0.0, 0.001]), ROBOT.conversion_to(TRAINED))
    executor = TemporalEnsemble(policy, action_reference="absolute", coefficient=0.0)
    env = TransformedEnv(ToyVLAEnv(2, 2, seed=0), InitTracker())
    actions = env.rollout(3, executor)["action"][:, 0]
    # Every chunk says 0.1 cm from its state, twice. The state is what was executed:
    # 0.1 from 0; the mean of 0.1 and 0.2, from 0.1; that of 0.2 and 0.25, from 0.15.
    torch.testing.assert_close(actions, torch.tensor([0.1, 0.15, 0.225]))


def test_a_delta_chunk_is_added_to_the_command_before():
    delta = replace(TRAINED, action_reference=("delta",) * 2)
    policy = ConvertedPolicy(always([0.0, 0.1]), ROBOT.conversion_to(delta))
    assert "previous_action" in policy.in_keys
    step = policy(seen(0.0, 0.0).set("previous_action", torch.tensor([[1.0, 2.0]])))
    expected = torch.tensor([[[11.0, 2.0], [21.0, 2.0]]])
    torch.testing.assert_close(step["action_chunk"], expected)


def test_a_chunk_at_another_rate_has_the_robots_number_of_actions():
    fast = replace(ROBOT, dataset_id="fast", control_frequency_hz=20.0)
    policy = ConvertedPolicy(always([1.0, 2.0], rows=5), ROBOT.conversion_to(fast))
    assert (policy.chunk_size, policy.action_dim) == (3, 2)
    assert policy(seen(0.0, 0.0))["action_chunk"].shape == (1, 3, 2)


def test_a_chunk_to_continue_is_measured_anew():
    def chunk(state, guide):
        return guide

    policy = TensorDictModule(
        chunk, [("observation", "state"), "guide_chunk"], ["action_chunk"]
    )
    policy = ConvertedPolicy(policy, ROBOT.conversion_to(TRAINED))
    guide = torch.tensor([[[50.0, 70.0]]])
    step = policy(seen(5.0, 7.0).set("guide_chunk", guide))
    torch.testing.assert_close(step["action_chunk"], guide)
    fast = replace(ROBOT, control_frequency_hz=20.0)
    policy = ConvertedPolicy(policy.policy, ROBOT.conversion_to(fast))
    with pytest.raises(SpaceError, match="expected the policy's own control rate"):
        policy(seen(5.0, 7.0).set("guide_chunk", guide))


def test_a_normalized_policy_is_refused_until_its_space_wraps_it():
    stats = FeatureStatistics.from_samples(torch.tensor([[0.0, 0.0], [2.0, 4.0]]))
    space = ModelSpace(replace(TRAINED, action_statistics=stats))
    policy = always([1.0, 1.0])
    mark_space(policy, space.policy_space)
    conversion = ROBOT.conversion_to(TRAINED)
    with pytest.raises(SpaceError, match="expected a policy in robot space"):
        ConvertedPolicy(policy, conversion)
    robot = ConvertedPolicy(space.robot_policy(policy), conversion)
    # One std above the mean: y is 2 m, x 4 m; from x = 5 cm and y = 7 cm.
    torch.testing.assert_close(
        robot(seen(5.0, 7.0))["action_chunk"][0, 0], torch.tensor([405.0, 207.0])
    )
    assert robot.policy_space == PolicySpace("robot")


@pytest.mark.parametrize(
    "make",
    [
        lambda policy: TemporalEnsemble(policy, action_reference="relative"),
        lambda policy: RealTimeChunking(
            policy, replan_interval=1, inference_delay=0, action_reference="relative"
        ),
        lambda policy: ActionInterpolation(
            MultiStepActorWrapper(policy), 2, action_reference="delta"
        ),
    ],
    ids=["ensemble", "real time", "interpolation"],
)
def test_executors_of_absolute_actions_name_the_conversion(make):
    with pytest.raises(ValueError, match=r"ConvertedPolicy\(policy, .*conversion_to"):
        make(always([0.0, 0.0]))
