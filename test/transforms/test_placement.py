from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import Compose, TransformedEnv

from torchrl_vla.envs import ToyVLAEnv
from torchrl_vla.tokenizers import UniformActionTokenizer
from torchrl_vla.transforms import ActionScaling, ActionTokenizerTransform
from torchrl_vla.transforms.placement import acts_in_environment

NESTINGS = {
    "plain": lambda transform: transform,
    "composed": lambda transform: Compose(transform),
    "nested": lambda transform: Compose(Compose(Compose(transform))),
}


@pytest.mark.parametrize("nest", NESTINGS)
def test_a_transform_acts_in_the_environment_that_holds_it(nest):
    scaling = ActionScaling(0.0, 2.0)
    env = TransformedEnv(ToyVLAEnv(), NESTINGS[nest](scaling))
    assert acts_in_environment(scaling)
    assert env.transform is not None  # keeps the environment alive until here


@pytest.mark.parametrize("nest", NESTINGS)
def test_a_transform_does_not_act_in_a_buffer(nest):
    scaling = ActionScaling(0.0, 2.0)
    transform = NESTINGS[nest](scaling)
    assert not acts_in_environment(scaling)
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(2), transform=transform)
    assert not acts_in_environment(scaling)
    assert len(buffer) == 0


@pytest.mark.parametrize("nest", NESTINGS)
@pytest.mark.parametrize("write", ["extend", "add"])
def test_a_buffer_stores_what_it_was_given(nest, write):
    scaling = ActionScaling(1.0, 2.0)
    tokens = ActionTokenizerTransform(UniformActionTokenizer(4, low=-8.0, high=8.0))
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(2),
        transform=Compose(NESTINGS[nest](scaling), NESTINGS[nest](tokens)),
        batch_size=2,
    )
    given = TensorDict({"action": torch.tensor([[3.0], [-5.0]])}, [2])
    if write == "extend":
        buffer.extend(given)
    else:
        for frame in given:
            buffer.add(frame)
    assert buffer.storage[:]["action"].tolist() == [[3.0], [-5.0]]
    assert "action_tokens" not in buffer.storage[:]
    assert given["action"].tolist() == [[3.0], [-5.0]]
    # (3 - 1) / 2 = 1 and (-5 - 1) / 2 = -3; bins are 4 wide, from -8 on.
    assert buffer[:]["action"].tolist() == [[1.0], [-3.0]]
    assert buffer[:]["action_tokens"].tolist() == [[2], [1]]


@pytest.mark.parametrize("nest", NESTINGS)
def test_an_environment_gets_the_action_in_robot_space(nest):
    scaling = ActionScaling(torch.tensor([0.25, 0.0]), torch.tensor([0.5, 0.25]))
    env = TransformedEnv(ToyVLAEnv(2, 2), NESTINGS[nest](scaling))
    step = env.reset().set("action", torch.tensor([1.0, -2.0]))
    state = env.step(step)["next", "observation", "state"]
    assert state.tolist() == [0.75, -0.5]


def test_a_transform_added_later_acts_in_the_environment():
    env = TransformedEnv(ToyVLAEnv(2, 2))
    env.append_transform(Compose(ActionScaling(0.0, 0.5)))
    step = env.reset().set("action", torch.tensor([1.0, -2.0]))
    state = env.step(step)["next", "observation", "state"]
    assert state.tolist() == [0.5, -1.0]
