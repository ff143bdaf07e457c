from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import Compose, TransformedEnv, check_env_specs

from torchrl_vla.envs import ToyVLAEnv
from torchrl_vla.schema import MissingKeyError, TokenError
from torchrl_vla.tokenizers import UniformActionTokenizer
from torchrl_vla.transforms import (
    ActionChunkTransform,
    ActionScaling,
    ActionTokenizerTransform,
)


def make_transform(**keys):
    """Make four bins of 0.5 on [-1, 1], with middles at -0.75, -0.25, 0.25, 0.75."""
    return ActionTokenizerTransform(
        UniformActionTokenizer(4, low=-1.0, high=1.0), **keys
    )


def make_env(*transforms, batch=3):
    env = ToyVLAEnv(2, 2, batch_size=[batch], seed=0)
    return TransformedEnv(env, Compose(*(transforms or (make_transform(),))))


def test_actions_are_encoded_beside_the_actions():
    data = TensorDict({"action": torch.tensor([[-1.0, 0.1], [0.5, 7.0]])}, [2])
    data = make_transform()(data)
    assert data["action_tokens"].tolist() == [[0, 2], [3, 3]]
    assert data["action_tokens"].dtype == torch.int64
    assert data["action"].tolist() == [[-1.0, pytest.approx(0.1)], [0.5, 7.0]]


def test_chunks_are_encoded_by_naming_their_key():
    data = TensorDict({"action_chunk": torch.tensor([[[-1.0], [0.1], [0.6]]])}, [1])
    data = make_transform(in_key="action_chunk")(data)
    assert data["action_tokens"].tolist() == [[[0], [2], [3]]]


def test_the_environment_executes_what_the_tokens_stand_for():
    env = make_env()
    tokens = torch.tensor([[0, 1], [2, 3], [3, 0]])
    td = env.step(env.reset().set("action_tokens", tokens))
    expected = [[-0.75, -0.25], [0.25, 0.75], [0.75, -0.75]]
    assert td["next", "observation", "state"].tolist() == expected
    assert torch.equal(td["action_tokens"], tokens)


def test_the_action_spec_is_that_of_the_tokens():
    env = make_env()
    assert env.action_keys == ["action_tokens"]
    spec = env.full_action_spec["action_tokens"]
    assert (spec.space.n, spec.shape, spec.dtype) == (4, (3, 2), torch.int64)
    check_env_specs(env)
    state = env.rollout(5)["next", "observation", "state"]
    assert set(state.flatten().tolist()) <= {-0.75, -0.25, 0.25, 0.75}


def test_tokens_may_take_the_actions_own_key():
    env = make_env(make_transform(out_key="action"))
    check_env_specs(env)
    td = env.step(env.reset().set("action", torch.full((3, 2), 3)))
    assert td["next", "observation", "state"].unique().tolist() == [0.75]


def test_scaling_outside_the_tokens_is_undone_last():
    # The base environment comes first: tokens decode to model space, then robot space.
    env = make_env(ActionScaling(0.5, 0.25), make_transform())
    td = env.step(env.reset().set("action_tokens", torch.full((3, 2), 3)))
    assert td["next", "observation", "state"].unique().tolist() == [0.6875]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=6, max_size=6))
def test_data_and_environment_agree_on_every_token(tokens):
    tokens = torch.tensor(tokens).view(3, 2)
    env = make_env()
    td = env.step(env.reset().set("action_tokens", tokens))
    executed = TensorDict({"action": td["next", "observation", "state"]}, [3])
    assert torch.equal(make_transform()(executed)["action_tokens"], tokens)


def test_a_buffer_gives_tokens_of_chunks_and_stores_none():
    storage = LazyTensorStorage(3)
    buffer = TensorDictReplayBuffer(
        storage=storage,
        transform=Compose(
            ActionChunkTransform(2, storage=storage),
            make_transform(in_key="action_chunk"),
        ),
        batch_size=3,
    )
    frames = TensorDict(
        {
            "action": torch.tensor([[-1.0], [0.1], [0.6]]),
            "episode_index": torch.zeros(3, dtype=torch.int64),
            "frame_index": torch.arange(3),
        },
        [3],
    )
    buffer.extend(frames)
    assert set(storage[:].keys()) >= set(frames.keys())
    assert not {"action_tokens", "action_chunk"} & set(storage[:].keys())
    assert torch.equal(storage[:]["action"], frames["action"])
    assert buffer[:]["action_tokens"][..., 0].tolist() == [[0, 2], [2, 3], [3, 3]]


def test_alone_its_inverse_does_nothing():
    data = TensorDict({"action_tokens": torch.tensor([[3]])}, [1])
    assert set(make_transform().inv(data).keys()) == {"action_tokens"}


def test_data_without_an_action_raise():
    message = (
        "ActionTokenizerTransform: expected an action to encode at 'action', got "
        r"nothing. Available: \['state'\]"
    )
    with pytest.raises(MissingKeyError, match=message):
        make_transform()(TensorDict({"state": torch.zeros(1, 2)}, [1]))


def test_a_step_without_tokens_raises():
    env = make_env()
    with pytest.raises(MissingKeyError, match="expected tokens to decode at 'action_t"):
        env.transform.inv(env.reset())


def test_an_environment_without_the_action_raises():
    env = make_env(make_transform(in_key="command"))
    message = r"expected 'command' in the environment's action spec, got \['action'\]"
    with pytest.raises(MissingKeyError, match=message):
        env.full_action_spec  # noqa: B018


def test_an_action_that_is_nan_and_a_token_that_is_none_raise():
    data = TensorDict({"action": torch.tensor([[0.0, torch.nan]])}, [1])
    with pytest.raises(TokenError, match=r"finite actions, got nan at index \[0, 1\]"):
        make_transform()(data)
    env = make_env()
    with pytest.raises(
        TokenError, match=r"tokens in \[0, 4\), got 4 at index \[0, 0\]"
    ):
        env.step(env.reset().set("action_tokens", torch.full((3, 2), 4)))


def test_anything_but_a_tokenizer_raises():
    with pytest.raises(TypeError, match=r"an ActionTokenizerBase at .* got function"):
        ActionTokenizerTransform(lambda action: action)


def test_it_prints_its_keys():
    text = "ActionTokenizerTransform('action' -> 'action_tokens')"
    assert repr(make_transform()) == text
