from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import Compose, TransformedEnv, check_env_specs

from torchrl_vla.envs import ToyVLAEnv
from torchrl_vla.schema import MissingKeyError, SchemaError
from torchrl_vla.transforms import StateScaling

STATE = ("observation", "state")
LOC, SCALE = torch.tensor([0.25, -0.5]), torch.tensor([0.5, 0.25])


def make_transition():
    return TensorDict(
        {
            "observation": {"state": torch.tensor([[0.75, 0.0]])},
            "action": torch.tensor([[9.0, 9.0]]),
            "next": {"observation": {"state": torch.tensor([[0.25, -0.25]])}},
        },
        [1],
    )


def test_the_state_is_normalized_now_and_next_and_nothing_else():
    data = StateScaling(LOC, SCALE)(make_transition())
    assert data[STATE].tolist() == [[1.0, 2.0]]
    assert data[("next", *STATE)].tolist() == [[0.0, 1.0]]
    assert data["action"].tolist() == [[9.0, 9.0]]


def test_data_without_a_next_have_their_state_normalized():
    data = StateScaling(LOC, SCALE)(make_transition().exclude("next"))
    assert data[STATE].tolist() == [[1.0, 2.0]]
    assert "next" not in data


def test_reset_and_step_of_an_environment_give_model_space():
    env = TransformedEnv(ToyVLAEnv(2, 2), StateScaling(LOC, SCALE))
    reset = env.reset()
    assert reset[STATE].tolist() == [-0.5, 2.0]  # (0 - 0.25) / 0.5, (0 + 0.5) / 0.25
    stepped = env.step(reset.set("action", torch.tensor([0.75, 0.0])))
    assert stepped[("next", *STATE)].tolist() == [1.0, 2.0]
    check_env_specs(env)


def test_every_step_of_a_rollout_is_normalized_once():
    env = TransformedEnv(
        ToyVLAEnv(2, 2, max_steps=2), Compose(StateScaling(LOC, SCALE))
    )
    action = torch.tensor([0.75, 0.0])
    rollout = env.rollout(
        5, lambda td: td.set("action", action), break_when_any_done=False
    )
    # Episodes of two steps; the first state of each is that of a reset.
    first, later = [-0.5, 2.0], [1.0, 2.0]
    assert rollout[STATE].tolist() == [first, later, first, later, first]
    assert rollout[("next", *STATE)].tolist() == [later] * 5


def test_a_masked_reset_normalizes_the_rows_that_go_on_no_second_time():
    env = TransformedEnv(ToyVLAEnv(2, 2, batch_size=[2]), StateScaling(LOC, SCALE))
    td = env.reset().set("action", torch.tensor([[0.75, 0.0]] * 2))
    td = env.step(td)["next"]
    td["_reset"] = torch.tensor([[True], [False]])
    assert env.reset(td)[STATE].tolist() == [[-0.5, 2.0], [1.0, 2.0]]


def test_the_spec_of_the_state_follows():
    base = ToyVLAEnv(2, 2)
    spec = base.observation_spec.clone()
    spec["observation", "state"] = base.action_spec  # [-1, 1]
    base.observation_spec = spec
    env = TransformedEnv(base, StateScaling(LOC, SCALE))
    spec = env.observation_spec["observation", "state"]
    assert spec.space.low.tolist() == [-2.5, -2.0]
    assert spec.space.high.tolist() == [1.5, 6.0]


def test_extend_stores_what_it_was_given_and_sampling_normalizes():
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(1),
        transform=Compose(Compose(StateScaling(LOC, SCALE))),
        batch_size=1,
    )
    buffer.extend(make_transition())
    stored = buffer.storage[:]
    assert stored[STATE].tolist() == [[0.75, 0.0]]
    assert stored[("next", *STATE)].tolist() == [[0.25, -0.25]]
    assert buffer.sample()[STATE].tolist() == [[1.0, 2.0]]
    assert buffer.sample()[("next", *STATE)].tolist() == [[0.0, 1.0]]


def test_data_without_a_state_raise():
    message = (
        r"StateScaling: expected a state at \('observation', 'state'\), got nothing. "
        r"Available: \['action'\]"
    )
    with pytest.raises(MissingKeyError, match=message):
        StateScaling(LOC, SCALE)(TensorDict({"action": torch.zeros(1, 2)}, [1]))


def test_a_state_of_another_robot_raises():
    env = TransformedEnv(ToyVLAEnv(2, 6), StateScaling(LOC, SCALE))
    with pytest.raises(SchemaError, match=r"expected \[..., 2\], got shape \(6,\)"):
        env.reset()


def test_a_state_of_whole_numbers_raises():
    data = TensorDict({"observation": {"state": torch.zeros(1, 2).long()}}, [1])
    with pytest.raises(SchemaError, match=r"a floating dtype, got torch\.int64. Con"):
        StateScaling(LOC, SCALE)(data)


def test_every_key_can_be_another():
    scaling = StateScaling(LOC, SCALE, in_keys=["left", "right"])
    data = TensorDict({"left": LOC[None].clone(), "right": (LOC + SCALE)[None]}, [1])
    data = scaling(data)
    assert data["left"].tolist() == [[0.0, 0.0]]
    assert data["right"].tolist() == [[1.0, 1.0]]


def test_its_inverse_does_nothing_even_in_an_environment():
    env = TransformedEnv(ToyVLAEnv(2, 2), StateScaling(LOC, SCALE))
    td = env.reset()
    assert torch.equal(env.transform.inv(td)[STATE], td[STATE])
