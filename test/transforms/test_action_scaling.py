from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torchrl.data import (
    Bounded,
    LazyMemmapStorage,
    LazyTensorStorage,
    TensorDictReplayBuffer,
    Unbounded,
)
from torchrl.envs import Compose, InitTracker, TransformedEnv, check_env_specs

from torchrl_vla.envs import ToyVLAEnv
from torchrl_vla.schema import (
    MetadataError,
    MissingKeyError,
    RobotDatasetMetadata,
    SchemaError,
    SpaceError,
)
from torchrl_vla.transforms import ActionScaling

LOC, SCALE = torch.tensor([0.25, -0.5]), torch.tensor([0.5, 0.25])


def make_scaling(**keys):
    return ActionScaling(LOC, SCALE, **keys)


def make_env(**keys):
    return TransformedEnv(ToyVLAEnv(2, 2, batch_size=[3], seed=0), make_scaling(**keys))


def echo(env, action):
    """Return the action that the environment executed."""
    step = env.reset().set("action", torch.tensor(action).expand(3, 2).clone())
    return env.step(step)["next", "observation", "state"]


def test_actions_and_chunks_are_normalized_in_data_and_nothing_else():
    data = TensorDict(
        {
            "action": torch.tensor([[0.75, 0.0]]),
            "action_chunk": torch.tensor([[[0.25, -0.5], [0.0, -0.25]]]),
            "action_is_pad": torch.tensor([[False, True]]),
            "observation": {"state": torch.tensor([[9.0, 9.0]])},
        },
        [1],
    )
    data = make_scaling()(data)
    assert data["action"].tolist() == [[1.0, 2.0]]
    # A padded slot too: what it holds is masked, but stays in one space.
    assert data["action_chunk"].tolist() == [[[0.0, 0.0], [-0.5, 1.0]]]
    assert data["observation", "state"].tolist() == [[9.0, 9.0]]


def test_a_chunk_alone_is_enough():
    data = TensorDict({"action_chunk": torch.tensor([[[0.75, 0.0]]])}, [1])
    assert make_scaling()(data)["action_chunk"].tolist() == [[[1.0, 2.0]]]


def test_data_without_any_action_raise():
    message = (
        r"ActionScaling: expected one of \['action', 'action_chunk'\] in the data, got "
        r"none. Available: \['actions'\]"
    )
    with pytest.raises(MissingKeyError, match=message):
        make_scaling()(TensorDict({"actions": torch.zeros(1, 2)}, [1]))


def test_a_chunk_of_another_robot_raises():
    data = TensorDict({"action_chunk": torch.zeros(1, 4, 7)}, [1])
    with pytest.raises(SchemaError, match=r"expected \[..., 2\], got shape \(1, 4, 7"):
        make_scaling()(data)


def test_the_environment_executes_robot_space():
    assert echo(make_env(), [1.0, 2.0]).tolist() == [[0.75, 0.0]] * 3


def test_the_rollout_keeps_the_action_that_the_policy_gave():
    rollout = make_env().rollout(2, lambda td: td.set("action", torch.ones(3, 2)))
    assert (rollout["action"] == 1.0).all()
    state = rollout["next", "observation", "state"]
    assert torch.equal(state, torch.tensor([0.75, -0.25]).expand(3, 2, 2))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1, 1, width=16), min_size=2, max_size=2))
def test_what_data_normalize_the_environment_denormalizes(action):
    data = TensorDict({"action": torch.tensor([action])}, [1])
    normalized = make_scaling()(data)["action"][0].tolist()
    executed = echo(make_env(), normalized)
    torch.testing.assert_close(executed[0], torch.tensor(action), rtol=0, atol=1e-6)


def test_the_action_spec_is_that_of_model_space():
    env = make_env()
    spec = env.action_spec
    # The robot's [-1, 1]: (-1 - 0.25) / 0.5 and so on.
    assert spec.space.low.tolist() == [[-2.5, -2.0]] * 3
    assert spec.space.high.tolist() == [[1.5, 6.0]] * 3
    check_env_specs(env)


def test_a_dimension_without_a_bound_stays_without():
    base = ToyVLAEnv(2, 2)
    base.action_spec = base.action_spec.clone()
    largest = torch.finfo(torch.float32).max
    base.action_spec.space.high = torch.tensor([1.0, largest])
    env = TransformedEnv(base, make_scaling())
    assert env.action_spec.space.high.tolist() == [1.5, largest]


def test_a_discrete_action_raises():
    scaling = make_scaling(in_keys_inv=["done"])
    spec = ToyVLAEnv(2, 2).full_done_spec
    with pytest.raises(SchemaError, match="expected a continuous spec, got Binary"):
        scaling.transform_action_spec(spec)


def test_a_step_without_the_action_raises():
    env = make_env()
    with pytest.raises(
        MissingKeyError, match="in model space at 'action', got nothing"
    ):
        env.transform.inv(env.reset().exclude("action"))


def test_it_does_not_touch_what_an_environment_returns():
    bare = ToyVLAEnv(2, 2, batch_size=[3], seed=0).reset()
    scaled = make_env().reset()
    assert torch.equal(bare["observation", "state"], scaled["observation", "state"])
    assert set(bare.keys(True, True)) == set(scaled.keys(True, True))


def test_alone_its_inverse_does_nothing():
    data = TensorDict({"action": torch.tensor([[0.75, 0.0]])}, [1])
    assert make_scaling().inv(data)["action"].tolist() == data["action"].tolist()
    assert Compose(make_scaling()).inv(data)["action"].tolist() == [[0.75, 0.0]]


def test_a_buffer_on_disk_keeps_robot_space_through_write_and_sample(tmp_path):
    buffer = TensorDictReplayBuffer(
        storage=LazyMemmapStorage(4, scratch_dir=tmp_path),
        transform=make_scaling(),
        batch_size=4,
    )
    given = TensorDict({"action": torch.tensor([[0.75, 0.0], [0.25, -0.5]])}, [2])
    buffer.extend(given)
    for _ in range(2):  # sampling writes nothing back
        assert buffer[:]["action"].tolist() == [[1.0, 2.0], [0.0, 0.0]]
        assert {tuple(a) for a in buffer.sample()["action"].tolist()} <= {
            (1, 2),
            (0, 0),
        }
    assert torch.equal(buffer.storage[:]["action"], given["action"])


def test_one_transform_may_serve_a_buffer_before_it_serves_an_environment():
    scaling = make_scaling()
    storage = LazyTensorStorage(2)
    buffer = TensorDictReplayBuffer(storage=storage, transform=scaling.clone())
    env = TransformedEnv(ToyVLAEnv(2, 2, batch_size=[3]), scaling)
    buffer.extend(TensorDict({"action": torch.tensor([[0.75, 0.0]])}, [1]))
    assert storage[:]["action"].tolist() == [[0.75, 0.0]]
    assert echo(env, [1.0, 2.0]).tolist() == [[0.75, 0.0]] * 3


def test_every_key_can_be_another():
    scaling = make_scaling(in_keys=[("expert", "action")], in_keys_inv=[])
    data = TensorDict({"expert": {"action": torch.tensor([[0.75, 0.0]])}}, [1])
    assert scaling(data)["expert", "action"].tolist() == [[1.0, 2.0]]


def test_gradients_pass():
    action = torch.tensor([[0.75, 0.0]], requires_grad=True)
    make_scaling()(TensorDict({"action": action}, [1]))["action"].sum().backward()
    assert action.grad.tolist() == [[2.0, 4.0]]


# TorchRL's spellings.


def test_without_numbers_the_bounds_of_the_environment_map_to_one():
    base = ToyVLAEnv(2, 2, batch_size=[3], seed=0)
    base.action_spec = Bounded(
        torch.tensor([-2.0, 0.0]).expand(3, 2), torch.tensor([4.0, 1.0]).expand(3, 2)
    )
    env = TransformedEnv(base, ActionScaling())
    check_env_specs(env)
    assert env.action_spec.space.low.unique().tolist() == [-1.0]
    assert env.action_spec.space.high.unique().tolist() == [1.0]
    # The middle of [-2, 4], and three quarters of [0, 1].
    assert echo(env, [0.0, 0.5]).tolist() == [[1.0, 0.75]] * 3
    assert env.transform.denormalize(torch.tensor([1.0, -1.0])).tolist() == [4.0, 0.0]


def test_bounds_are_taken_below_a_compose_and_only_where_the_mask_says():
    base = ToyVLAEnv(2, 2, batch_size=[3], seed=0)
    scaling = ActionScaling(mask=[True, False])
    base.action_spec = Bounded(-0.5, 0.5, (3, 2))
    env = TransformedEnv(base, Compose(InitTracker(), scaling))
    assert echo(env, [1.0, 0.25]).tolist() == [[0.5, 0.25]] * 3


def test_bounds_that_are_none_raise():
    data = TensorDict({"action": torch.zeros(1, 2)}, [1])
    with pytest.raises(
        SpaceError, match=r"got neither\. .*from_metadata to scale data"
    ):
        ActionScaling()(data)
    base = ToyVLAEnv(2, 2)
    base.action_spec = Unbounded((2,))
    with pytest.raises(SpaceError, match="expected finite bounds"):
        TransformedEnv(base, ActionScaling()).rollout(1)
    with pytest.raises(ValueError, match="both of loc and scale, or neither"):
        ActionScaling(1.0)


def test_metadata_without_statistics_scale_by_declared_bounds():
    metadata = RobotDatasetMetadata(
        "d", action_dim=2, action_low=(-2.0, 0.0), action_high=(4.0, 1.0)
    )
    scaling = ActionScaling.from_metadata(metadata)
    assert scaling.denormalize(torch.tensor([1.0, -1.0])).tolist() == [4.0, 0.0]
    with pytest.raises(MetadataError, match="expected statistics in 'd', got None"):
        ActionScaling.from_metadata(metadata, "mean_std")


def test_eps_says_up_to_which_scale_a_dimension_did_not_move():
    scaling = ActionScaling.from_stats(
        mean=torch.zeros(2), std=torch.tensor([0.01, 0.5]), eps=0.1
    )
    assert scaling.scale.tolist() == [1.0, 0.5]
