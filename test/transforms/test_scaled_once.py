from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import Compose, TransformedEnv

from torchrl_vla.envs import ToyVLAEnv
from torchrl_vla.execution import MultiAction
from torchrl_vla.schema import SpaceError
from torchrl_vla.transforms import ActionScaling, StateScaling

TWICE = r"expected 'action' to be scaled once, got two scalings of it: ActionScaling\("


def make_buffer(*transforms):
    return TensorDictReplayBuffer(
        storage=LazyTensorStorage(2), transform=Compose(*transforms), batch_size=1
    )


def make_env(*transforms, **options):
    return TransformedEnv(ToyVLAEnv(2, 2), Compose(*transforms), **options)


def halve(**keys):
    return ActionScaling(0.0, 2.0, **keys)


@pytest.mark.parametrize("make", [make_buffer, make_env])
def test_two_scalings_of_the_action_raise_where_they_are_composed(make):
    with pytest.raises(SpaceError, match=TWICE):
        make(halve(), halve())
    with pytest.raises(SpaceError, match=TWICE):
        make(Compose(Compose(halve())), Compose(halve()))


@pytest.mark.parametrize("make", [make_buffer, make_env])
def test_a_second_scaling_appended_later_raises(make):
    place = make(halve())
    with pytest.raises(SpaceError, match=TWICE):
        place.append_transform(halve())
    with pytest.raises(SpaceError, match=TWICE):
        make(halve()).append_transform(Compose(halve()))


def test_a_second_scaling_around_a_scaled_environment_raises():
    env = make_env(halve())
    with pytest.raises(SpaceError, match=TWICE):
        TransformedEnv(env, halve(), auto_unwrap=False)
    with pytest.raises(SpaceError, match=TWICE):
        TransformedEnv(env, halve(), auto_unwrap=True)


@pytest.mark.parametrize("make", [make_buffer, make_env])
def test_two_scalings_of_the_state_raise(make):
    message = r"StateScaling: expected \('observation', 'state'\) to be scaled once"
    with pytest.raises(SpaceError, match=message):
        make(StateScaling(0.0, 2.0), StateScaling(0.0, 4.0))


def test_the_same_data_key_twice_raises_when_a_buffer_is_sampled():
    # Legal in an environment, where the two scale different actions.
    buffer = make_buffer(halve(in_keys_inv=["left"]), halve(in_keys_inv=["right"]))
    buffer.extend(TensorDict({"action": torch.ones(2, 2)}, [2]))
    with pytest.raises(SpaceError, match=TWICE):
        buffer.sample()


def test_a_chunk_and_the_actions_that_it_is_cut_into_are_one_key():
    with pytest.raises(SpaceError, match=TWICE):
        make_env(halve(), MultiAction(3), halve(in_keys_inv=["action_chunk"]))


def test_two_scalings_of_different_keys_are_legal():
    buffer = make_buffer(
        halve(in_keys=["left"]), ActionScaling(0.0, 4.0, in_keys=["right"])
    )
    both = torch.full((2, 1), 8.0)
    buffer.extend(TensorDict({"left": both, "right": both}, [2]))
    assert buffer[:]["left"].tolist() == [[4.0], [4.0]]
    assert buffer[:]["right"].tolist() == [[2.0], [2.0]]


def test_two_scalings_of_different_dimensions_are_legal():
    first, second = torch.tensor([True, False]), torch.tensor([False, True])
    two, four = torch.full((2,), 2.0), torch.full((2,), 4.0)
    zero = torch.zeros(2)
    buffer = make_buffer(
        ActionScaling(zero, two, mask=first), ActionScaling(zero, four, mask=second)
    )
    buffer.extend(TensorDict({"action": torch.full((1, 2), 8.0)}, [1]))
    assert buffer[:]["action"].tolist() == [[4.0, 2.0]]


def test_a_scaling_of_the_buffer_beside_one_of_the_environment_is_legal():
    env, buffer = make_env(halve()), make_buffer(halve())
    step = env.reset().set("action", torch.tensor([0.25, 0.5]))
    state = env.step(step)["next", "observation", "state"]
    assert state.tolist() == [0.5, 1.0]
    buffer.extend(TensorDict({"action": torch.tensor([[0.5, 1.0]])}, [1]))
    assert buffer[:]["action"].tolist() == [[0.25, 0.5]]


def test_a_scaling_after_multi_action_needs_the_key_of_the_chunk():
    env = make_env(MultiAction(3), halve())
    step = env.reset()
    step["action"] = torch.zeros(2)  # left over from an earlier step
    step["action_chunk"] = torch.full((3, 2), 0.1)
    message = r"expected 'action' in the environment's action spec, got \['action_chu"
    with pytest.raises(SpaceError, match=message):
        env.step(step)
    with pytest.raises(SpaceError, match=r"Pass in_keys_inv=\['action_chunk'\]"):
        env.action_spec  # noqa: B018


def test_a_multi_action_inserted_under_a_scaling_is_noticed():
    env = make_env(halve())
    env.step(env.reset().set("action", torch.zeros(2)))
    env.insert_transform(0, MultiAction(3))
    step = env.reset().set("action", torch.zeros(2))
    step["action_chunk"] = torch.full((3, 2), 0.1)
    with pytest.raises(SpaceError, match="expected 'action' in the environment's"):
        env.step(step)


def test_a_scaling_of_the_chunk_after_multi_action_is_executed_once():
    env = make_env(MultiAction(3), halve(in_keys_inv=["action_chunk"]))
    step = env.reset().set("action_chunk", torch.full((3, 2), 0.25))
    state = env.step(step)["next", "observation", "state"]
    assert state.tolist() == [0.5, 0.5]
