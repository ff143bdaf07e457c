"""The examples of the documents this library grew from; only the imports are ours."""

from __future__ import annotations

import importlib

import pytest
import torch
from tensordict import NonTensorData, NonTensorStack, TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import InitTracker, TransformedEnv
from torchrl.objectives import ClipPPOLoss

from torchrl_vla.envs import ToyVLAEnv
from torchrl_vla.execution import MultiAction, MultiStepActorWrapper
from torchrl_vla.objectives import BCLoss
from torchrl_vla.policies import (
    BackboneConfig,
    LeRobotPolicyWrapper,
    TinyTokenVLA,
    TinyVLA,
)
from torchrl_vla.schema import (
    ACTION_CHUNK_KEY,
    ACTION_IS_PAD_KEY,
    ACTION_KEY,
    ACTION_TOKENS_KEY,
    IMAGE_KEY,
    INSTRUCTION_KEY,
    OBSERVATION_KEY,
    STATE_KEY,
    RobotDatasetMetadata,
    validate_vla_tensordict,
)
from torchrl_vla.tokenizers import UniformActionTokenizer
from torchrl_vla.transforms import (
    ActionChunkTransform,
    ActionScaling,
    ActionTokenizerTransform,
    SuccessReward,
)


def canonical(*shape: int, chunk: int = 4, action_dim: int = 7) -> TensorDict:
    """The layout of the reference, with time last in the batch size."""
    n = torch.Size(shape).numel()
    texts = NonTensorStack(*["pick", "place"] * n)[:n].reshape(shape)
    return TensorDict(
        {
            "observation": {
                "image": {"top": torch.zeros(*shape, 3, 16, 16, dtype=torch.uint8)},
                "state": torch.randn(*shape, 5),
            },
            "language_instruction": texts,
            "action": torch.rand(*shape, action_dim),
            "action_chunk": torch.rand(*shape, chunk, action_dim),
            "action_is_pad": torch.arange(chunk).expand(*shape, chunk) == chunk - 1,
            "action_tokens": torch.randint(16, (*shape, chunk, action_dim)),
        },
        batch_size=shape,
    )


def test_the_lerobot_wrapper_example():
    class DummyPolicy:
        def predict_action_chunk(self, batch):
            b = batch["observation.state"].shape[0]
            return torch.zeros(b, 4, 7)

    policy = LeRobotPolicyWrapper(DummyPolicy(), action_dim=7, chunk_size=4)
    td = TensorDict(
        {
            "observation": {
                "image": torch.zeros(2, 3, 16, 16),
                "state": torch.zeros(2, 5),
            },
            "language_instruction": NonTensorStack("pick", "place"),
        },
        batch_size=[2],
    )
    assert policy(td)["action_chunk"].shape == torch.Size([2, 4, 7])


def test_the_default_keys_lay_data_out_as_the_reference_says():
    assert (OBSERVATION_KEY, IMAGE_KEY, STATE_KEY, INSTRUCTION_KEY) == (
        "observation",
        ("observation", "image"),
        ("observation", "state"),
        "language_instruction",
    )
    assert (ACTION_KEY, ACTION_CHUNK_KEY, ACTION_IS_PAD_KEY, ACTION_TOKENS_KEY) == (
        "action",
        "action_chunk",
        "action_is_pad",
        "action_tokens",
    )
    assert validate_vla_tensordict(canonical(2, 3)) == []
    one_for_all = canonical(2, 3)
    one_for_all["language_instruction"] = NonTensorData("pick", batch_size=[2, 3])
    assert validate_vla_tensordict(one_for_all) == []


def test_the_cloning_example():
    policy = TinyVLA(
        action_dim=7, chunk_size=4, backbone=BackboneConfig(cameras=("top",))
    )
    td = canonical(8)
    policy(td.clone())

    loss = BCLoss(policy, loss_function="l1")
    loss.set_keys(action="action_chunk", pad_mask="action_is_pad")

    value = loss(td)["loss_bc"]
    with torch.no_grad():
        error = (policy(td.clone())["action_chunk"] - td["action_chunk"]).abs()
    # The last of the four positions is padded everywhere.
    torch.testing.assert_close(value, error[:, :3].mean())
    value.backward()
    assert all(p.grad is not None and p.grad.any() for p in loss.parameters())


def test_the_token_fine_tuning_example():
    tokenizer = UniformActionTokenizer(16, low=-1.0, high=1.0)
    policy = TinyTokenVLA(
        action_dim=7,
        chunk_size=4,
        action_tokenizer=tokenizer,
        backbone=BackboneConfig(state_dim=5, cameras=("top",)),
    )

    loss = ClipPPOLoss(policy, critic_network=None, entropy_bonus=False)
    loss.set_keys(
        action="action_tokens", sample_log_prob="log_probs", advantage="advantage"
    )

    with torch.no_grad():
        td = policy(canonical(8))
    td["advantage"] = torch.arange(8.0).unsqueeze(-1)
    out = loss(td)
    torch.testing.assert_close(out["loss_objective"], torch.tensor(-3.5))
    assert out["clip_fraction"] == 0.0


def test_actions_are_normalized_on_sampling_and_denormalized_for_the_robot():
    stats = {"mean": torch.full((4,), 2.0), "std": torch.full((4,), 4.0)}
    raw = TensorDict({"action": torch.full((3, 4), 6.0)}, [3])
    # The reference asks for in_keys_inv=[] on a buffer; here both spellings are right.
    for options in ({"in_keys_inv": []}, {}):
        scaling = ActionScaling.from_stats(**stats, **options)
        buffer = TensorDictReplayBuffer(
            storage=LazyTensorStorage(3), transform=scaling, batch_size=3
        )
        buffer.extend(raw.clone())
        assert buffer.sample()["action"].unique().tolist() == [1.0]
        assert buffer.storage[:]["action"].unique().tolist() == [6.0]
    stats = {"mean": torch.zeros(4), "std": torch.full((4,), 0.5)}
    env = TransformedEnv(ToyVLAEnv(batch_size=[2]), ActionScaling.from_stats(**stats))
    td = env.reset().set("action", torch.ones(2, 4))
    state = env.step(td)["next", "observation", "state"]
    assert state[:, :4].unique().tolist() == [0.5]


def test_scaling_from_metadata_asks_for_statistics():
    metadata = RobotDatasetMetadata("robot", action_dim=4)
    with pytest.raises(ValueError, match="expected statistics in 'robot', got None"):
        ActionScaling.from_metadata(metadata)


def test_chunks_and_tokens_are_built_from_a_window():
    window = canonical(2, 5).select("action")
    td = ActionChunkTransform(3)(window)
    assert td["action_chunk"].shape == (2, 5, 3, 7)
    assert td["action_is_pad"].sum(-1).tolist() == [[0, 0, 0, 1, 2]] * 2
    tokenizer = UniformActionTokenizer(256, low=0.0, high=1.0)
    encode = ActionTokenizerTransform(tokenizer, in_key="action_chunk")
    tokens = encode(td)["action_tokens"]
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens, (td["action_chunk"] * 256).floor().long().clamp(max=255))


def test_a_chunk_policy_runs_from_inside_and_from_outside_the_policy():
    policy = TinyVLA(action_dim=4, chunk_size=3, backbone=BackboneConfig(state_dim=6))
    env = TransformedEnv(ToyVLAEnv(batch_size=[2], seed=0), InitTracker())
    rollout = env.rollout(7, MultiStepActorWrapper(policy, n_steps=3))
    assert rollout["action"].shape == (2, 7, 4)
    assert rollout["is_decision"][0, :, 0].nonzero().flatten().tolist() == [0, 3, 6]
    # The state echoes the executed action.
    echo = rollout["next", "observation", "state"][..., :4]
    assert torch.equal(echo, rollout["action"])
    outer = TransformedEnv(ToyVLAEnv(batch_size=[2], seed=0), MultiAction())
    rollout = outer.rollout(2, policy)
    assert rollout["next", "executed_steps"].unique().tolist() == [3]


def test_success_is_the_reward_of_fine_tuning():
    env = TransformedEnv(
        ToyVLAEnv(action_dim=2, state_dim=4, success_steps=1), SuccessReward()
    )
    td = env.reset()
    td["action"] = td["observation", "state"][2:]  # the target
    after = env.step(td)["next"]
    assert after["success"].item()
    assert after["reward"].item() == 1.0


@pytest.mark.parametrize(
    ("package", "names"),
    [
        ("schema", ["RobotDatasetMetadata", "validate_vla_tensordict"]),
        ("tokenizers", ["ActionTokenizerBase", "UniformActionTokenizer"]),
        ("policies", ["VLAWrapperBase", "TinyVLA", "LeRobotPolicyWrapper"]),
        ("execution", ["MultiStepActorWrapper", "MultiAction"]),
        ("envs", ["ToyVLAEnv"]),
        ("objectives", ["BCLoss"]),
        (
            "transforms",
            [
                "ActionChunkTransform",
                "ActionScaling",
                "ActionTokenizerTransform",
                "SuccessReward",
            ],
        ),
    ],
)
def test_the_names_of_the_reference_are_public(package, names):
    module = importlib.import_module(f"torchrl_vla.{package}")
    assert set(names) <= set(module.__all__)
