"""TorchRL's own VLA classes and ours, in one environment and on one buffer."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from tiny_options import make_tiny
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.vla import schema as theirs
from torchrl.envs import Compose, InitTracker, TransformedEnv
from torchrl.envs.custom import ToyVLAEnv as TheirToyEnv
from torchrl.envs.transforms import ActionChunkTransform as TheirChunks
from torchrl.envs.utils import check_env_specs
from torchrl.modules import MultiStepActorWrapper as TheirExecutor
from torchrl.modules.vla import TinyVLA as TheirTinyVLA
from torchrl.objectives import BCLoss as TheirBCLoss

from torchrl_vla.envs import ToyVLAEnv
from torchrl_vla.execution import MultiAction, MultiStepActorWrapper
from torchrl_vla.objectives import BCLoss
from torchrl_vla.policies import TinyVLA
from torchrl_vla.schema import MissingKeyError, keys
from torchrl_vla.transforms import (
    ActionChunkTransform,
    FromTorchRLNames,
    ToTorchRLNames,
)
from torchrl_vla.transforms.torchrl_names import TORCHRL_NAMES

SIZES = {"action_dim": 2, "chunk_size": 3}


def our_policy():
    return make_tiny(TinyVLA, **SIZES, state_dim=2, hidden=8)


def frames():
    return TensorDict(
        {
            "action": torch.arange(8.0).view(4, 2),
            "observation": {
                "image": torch.zeros(4, 3, 16, 16, dtype=torch.uint8),
                "state": torch.zeros(4, 2),
            },
            "language_instruction": ["reach"] * 4,
            "episode_index": torch.zeros(4, dtype=torch.int64),
            "frame_index": torch.arange(4),
        },
        [4],
    )


def test_every_key_of_theirs_that_differs_is_renamed():
    names = [name for name in theirs.__all__ if name.endswith("_KEY")]
    for name in names:
        if name != "VLA_ACTION_KEY":  # the container, which has no entry of ours
            ours = getattr(keys, name)
            assert TORCHRL_NAMES.get(ours, ours) == getattr(theirs, name), name
    assert len(names) == 9


def test_the_two_ways_undo_each_other_and_leave_the_rest():
    data = TensorDict(
        {
            "action_chunk": torch.rand(2, 3, 2),
            "action_tokens": torch.zeros(2, 3, 2, dtype=torch.int64),
            "log_probs": torch.rand(2),
            "action_is_pad": torch.zeros(2, 3, dtype=torch.bool),
        },
        [2],
    )
    renamed = ToTorchRLNames()(data)
    assert set(renamed.keys(True, True)) == {
        ("vla_action", "chunk"),
        ("vla_action", "tokens"),
        ("vla_action", "log_probs"),
        "action_is_pad",
    }
    back = FromTorchRLNames()(renamed)
    assert set(back.keys(True)) == set(data.keys(True))
    assert (back == data).all()


def test_data_without_such_names_raise():
    with pytest.raises(MissingKeyError, match=r"ToTorchRLNames: expected one of"):
        ToTorchRLNames()(frames())
    with pytest.raises(MissingKeyError, match=r"FromTorchRLNames: .*vla_action"):
        FromTorchRLNames()(frames())


@pytest.mark.filterwarnings("ignore:The name target_actor_network_params")
def test_our_buffer_feeds_their_loss_and_keeps_its_names():
    storage = LazyTensorStorage(4)
    chunks = ActionChunkTransform(3, storage=storage)
    buffer = TensorDictReplayBuffer(
        storage=storage, transform=Compose(chunks, ToTorchRLNames()), batch_size=4
    )
    buffer.extend(frames().exclude("language_instruction"))
    assert "vla_action" not in storage[:]
    batch = buffer[:].set("language_instruction", frames()["language_instruction"])
    loss = TheirBCLoss(TheirTinyVLA(**SIZES), loss_function="l1")
    loss.set_keys(action=("vla_action", "chunk"), pad_mask="action_is_pad")
    assert loss(batch)["loss_bc"].requires_grad


def test_their_chunks_feed_our_loss():
    window = frames().unsqueeze(0)
    batch = FromTorchRLNames()(TheirChunks(3)(window)).squeeze(0)
    expected = ActionChunkTransform(3)(window).squeeze(0)
    assert torch.equal(batch["action_is_pad"], expected["action_is_pad"])
    kept = ~batch["action_is_pad"]
    assert torch.equal(batch["action_chunk"][kept], expected["action_chunk"][kept])
    loss = BCLoss(our_policy())
    assert loss(batch)["loss_bc"].requires_grad


@pytest.mark.parametrize("make_env", [TheirToyEnv, ToyVLAEnv], ids=["theirs", "ours"])
def test_their_policy_acts_through_our_multi_action_in_either_environment(make_env):
    env = TransformedEnv(
        make_env(2, 2, batch_size=[2], seed=0),
        Compose(MultiAction(3), ToTorchRLNames()),
    )
    check_env_specs(env)
    rollout = env.rollout(2, TheirTinyVLA(**SIZES))
    executed = rollout["vla_action", "chunk"][..., -1, :]
    torch.testing.assert_close(rollout["next", "observation", "state"], executed)


@pytest.mark.parametrize("make_env", [TheirToyEnv, ToyVLAEnv], ids=["theirs", "ours"])
def test_their_policy_acts_in_our_executor_in_either_environment(make_env):
    policy = FromTorchRLNames().around(TheirTinyVLA(**SIZES))
    env = TransformedEnv(make_env(2, 2, batch_size=[2], seed=0), InitTracker())
    rollout = env.rollout(4, MultiStepActorWrapper(policy))
    assert rollout["is_decision"][0, :, 0].tolist() == [True, False, False, True]


def test_our_policy_acts_in_their_executor_and_environment():
    policy = ToTorchRLNames().around(our_policy())
    executor = TheirExecutor(policy, n_steps=3, chunk_keys=[("vla_action", "chunk")])
    env = TransformedEnv(TheirToyEnv(2, 2, batch_size=[2], seed=0), InitTracker())
    rollout = env.rollout(4, executor)
    state = rollout["next", "observation", "state"]
    assert state.shape == (2, 4, 2)
    torch.testing.assert_close(state, rollout["action"])


def test_an_environment_of_single_actions_has_nothing_to_rename():
    env = TransformedEnv(ToyVLAEnv(2, 2), ToTorchRLNames())
    with pytest.raises(MissingKeyError, match="after the transform that takes chunks"):
        env.rollout(1)


def test_a_step_without_the_other_name_raises():
    env = TransformedEnv(ToyVLAEnv(2, 2), Compose(MultiAction(3), ToTorchRLNames()))
    policy = TensorDictModule(
        lambda state: torch.zeros(3, 2), [("observation", "state")], ["action_chunk"]
    )
    with pytest.raises(MissingKeyError, match=r"expected an action at \('vla_action'"):
        env.rollout(1, policy)
