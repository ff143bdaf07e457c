from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.envs import TransformedEnv, check_env_specs

from torchrl_vla.envs import ToyVLAEnv
from torchrl_vla.execution import MultiAction
from torchrl_vla.schema import MetadataError, MissingKeyError, RobotDatasetMetadata
from torchrl_vla.transforms import PreviousAction

ABSOLUTE = RobotDatasetMetadata(
    "toy", action_names=("x", "y"), state_names=("x", "y"), action_reference="absolute"
)


def make_env(*more):
    env = TransformedEnv(
        ToyVLAEnv(2, 2, batch_size=[2], seed=0), PreviousAction(ABSOLUTE)
    )
    for transform in more:
        env.append_transform(transform)
    return env


def test_it_is_the_state_at_a_reset_and_the_last_command_after_each_step():
    env = make_env()
    check_env_specs(env)
    step = env.reset()
    assert torch.equal(step["previous_action"], step["observation", "state"])
    for value in (0.25, 0.5):
        step["action"] = torch.full((2, 2), value)
        step = env.step(step)["next"]
        assert step["previous_action"].unique().tolist() == [value]


def test_an_environment_that_is_reset_alone_begins_at_its_state():
    env = make_env()
    step = env.step(env.reset().set("action", torch.full((2, 2), 0.5)))["next"]
    step["_reset"] = torch.tensor([[True], [False]])
    again = env.reset(step)
    assert again["previous_action"].tolist() == [[0.0, 0.0], [0.5, 0.5]]


def test_an_environment_that_waits_keeps_its_command():
    env = make_env()
    step = env.reset().set("action", torch.full((2, 2), 0.5))
    after = env.transform._step(
        step.set("_step", torch.tensor([True, False])), step.clone()
    )
    assert after["previous_action"].tolist() == [[0.5, 0.5], [0.0, 0.0]]


def test_inside_a_chunk_it_is_the_command_of_the_last_base_step():
    env = make_env(MultiAction(3))
    chunk = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1).expand(2, 3, 2)
    after = env.step(env.reset().set("action_chunk", chunk))["next"]
    torch.testing.assert_close(after["previous_action"], torch.full((2, 2), 0.3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state_names": ("x", "z")}, r"got none for \['y'\]"),
        (
            {"action_units": "m", "state_units": "cm"},
            r"name and unit of each action of 'toy', got none for \['x', 'y'\]",
        ),
        ({"action_reference": "relative"}, "got relative ones"),
    ],
)
def test_what_the_command_cannot_be_known_of_raises(options, message):
    given = {"action_names": ("x", "y"), "state_names": ("x", "y"), **options}
    with pytest.raises(MetadataError, match=message):
        PreviousAction(RobotDatasetMetadata("toy", **given))


def test_a_reset_without_a_state_raises():
    with pytest.raises(MissingKeyError, match=r"expected a state at .* at a reset"):
        PreviousAction(ABSOLUTE)._reset(None, TensorDict({}, [2]))


def test_sampled_data_pass_through():
    data = TensorDict({"action": torch.zeros(1, 2)}, [1])
    assert set(PreviousAction(ABSOLUTE)(data).keys()) == {"action"}
