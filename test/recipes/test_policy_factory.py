from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch
from seeded_loss import Seeded
from torchrl.envs import ExcludeTransform, TransformedEnv
from users_policies import TenLines

from torchrl_vla.data import DemonstrationDataset, collect
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.evaluation import evaluate
from torchrl_vla.policies import (
    FlowSDENoise,
    TinyDiffusionVLA,
    TinyFlowVLA,
    TinyGaussianVLA,
    TinyTokenVLA,
    TinyVLA,
    as_policy,
)
from torchrl_vla.recipes import (
    GRPO,
    PPO,
    FinetuneSettings,
    Head,
    TrainingSettings,
    finetune,
    load_checkpoint,
    load_executor,
    make_cloning_loss,
    make_policy,
    make_space,
    make_training_transform,
    save_checkpoint,
    to_stochastic,
    train_behavior_cloning,
)
from torchrl_vla.schema import SchemaError, SpaceError
from torchrl_vla.testing import check_loss

CLASSES = {
    "regression": TinyVLA,
    "tokens": TinyTokenVLA,
    "gaussian": TinyGaussianVLA,
    "flow": TinyFlowVLA,
    "diffusion": TinyDiffusionVLA,
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    env = TabletopEnv(4, image_size=16, num_blocks=2)
    folder = tmp_path_factory.mktemp("reach") / "dataset"
    return collect(env, env.make_expert(), 8, folder=folder, progress=False)


def small(dataset, head):
    torch.manual_seed(0)
    return make_policy(dataset, chunk_size=3, head=head, hidden=16, depth=1).eval()


def test_every_head_has_its_class(dataset):
    assert set(get_args(Head)) == set(CLASSES)
    for head, cls in CLASSES.items():
        assert type(small(dataset, head)) is cls


@pytest.mark.parametrize("head", CLASSES)
def test_a_loaded_policy_of_any_head_acts_as_the_one_that_was_saved(
    dataset, head, tmp_path
):
    policy, space = small(dataset, head), make_space(dataset.metadata, head)
    save_checkpoint(tmp_path, policy, space)
    again, its_space = load_checkpoint(tmp_path)
    assert type(again) is type(policy)
    assert its_space.mode == space.mode
    env = TabletopEnv(4, image_size=16, num_blocks=2, seed=0)
    data = env.reset()
    data["is_init"] = torch.ones(4, 1, dtype=torch.bool)
    expected = space.executor(policy)(data.clone())["action"]
    actor = load_executor(tmp_path, metadata=env.metadata)
    assert torch.equal(actor(data)["action"], expected)


@pytest.mark.parametrize("head", CLASSES)
def test_cloning_lowers_the_loss_of_every_head(dataset, head):
    policy, space = small(dataset, head), make_space(dataset.metadata, head)
    transform = make_training_transform(policy, space, dataset.storage)
    batch = dataset.replay_buffer(64, transform=transform, seed=1).sample()

    def loss():
        torch.manual_seed(0)  # the noise of the denoising heads
        return make_cloning_loss(policy)(batch)["loss_bc"].item()

    before = loss()
    train_behavior_cloning(
        policy,
        dataset,
        TrainingSettings(steps=60, batch_size=32),
        space=space,
        progress=False,
    )
    assert loss() < 0.9 * before


def test_padding_has_no_influence_on_any_head(dataset):
    for head in CLASSES:
        policy, space = small(dataset, head), make_space(dataset.metadata, head)
        transform = make_training_transform(policy, space, dataset.storage)
        batch = dataset.replay_buffer(32, transform=transform, seed=1).sample()
        with torch.random.fork_rng():
            check_loss(Seeded(make_cloning_loss(policy)), batch)


def test_tokens_are_of_the_space_that_bounds_the_demonstrations(dataset):
    space = make_space(dataset.metadata, "tokens")
    policy = small(dataset, "tokens")
    transform = make_training_transform(policy, space, dataset.storage)
    batch = dataset.replay_buffer(len(dataset), transform=transform)[:]
    decoded = policy.action_tokenizer.decode(batch["action_tokens"])
    error = (decoded - batch["action_chunk"]).abs()[~batch["action_is_pad"]]
    assert error.max() <= 1 / 21 + 1e-5  # half a bin of [-1, 1]


def test_a_regression_head_gets_a_spread_and_a_flow_gets_noise(dataset):
    policy = small(dataset, "regression")
    stochastic = to_stochastic(policy, initial_std=0.3)
    assert isinstance(stochastic, TinyGaussianVLA)
    torch.testing.assert_close(stochastic.log_std.exp(), torch.full((2,), 0.3))
    env = TabletopEnv(4, image_size=16, num_blocks=2, seed=0)
    data = env.reset()
    assert torch.equal(
        stochastic(data.clone())["action_chunk"], policy(data.clone())["action_chunk"]
    )
    flow = to_stochastic(small(dataset, "flow"), flow_noise=0.4)
    assert isinstance(flow.noise, FlowSDENoise)
    tokens = small(dataset, "tokens")
    assert to_stochastic(tokens) is tokens


def test_an_unknown_head_is_refused(dataset):
    with pytest.raises(ValueError, match=r"expected a head of .*, got 'mixture'"):
        make_policy(dataset, chunk_size=3, head="mixture")


def test_a_policy_without_a_loss_is_refused():
    with pytest.raises(SchemaError, match=r"expected chunk_size of Linear, got n"):
        make_cloning_loss(torch.nn.Linear(1, 1))
    policy = as_policy(torch.nn.Linear(1, 1), chunk_size=1, action_dim=1)
    policy.cloning_loss = "mine"
    with pytest.raises(SchemaError, match=r"expected one of \['chunk', .*got 'mine'"):
        make_cloning_loss(policy)
    policy.cloning_loss = "torchrl_vla.objectives:BCLoss"
    assert type(make_cloning_loss(policy)).__name__ == "BCLoss"


def test_a_users_policy_goes_all_the_way(dataset, tmp_path):
    module, space = TenLines(), make_space(dataset.metadata)
    module(dataset.replay_buffer(2, seed=0).sample())  # its lazy layer has a size
    settings = TrainingSettings(steps=3, batch_size=8)
    train_behavior_cloning(module, dataset, settings, space=space, progress=False)
    save_checkpoint(tmp_path / "clone", module, space)
    again, its_space = load_checkpoint(tmp_path / "clone")
    assert again.policy_space == space.policy_space == its_space.policy_space
    env = TabletopEnv(4, image_size=16, num_blocks=2, max_steps=6, seed=0)
    data = env.reset().set("is_init", torch.ones(4, 1, dtype=torch.bool))
    expected = space.executor(as_policy(module))(data.clone())["action"]
    assert torch.equal(its_space.executor(again)(data.clone())["action"], expected)
    assert len(evaluate(env, its_space.executor(again), 2, progress=False)) == 2
    for algorithm in (GRPO(group_size=2, keep=None), PPO()):
        settings = FinetuneSettings(algorithm=algorithm, iterations=1, eval_episodes=2)
        folder = tmp_path / type(algorithm).__name__
        policy = to_stochastic(load_checkpoint(tmp_path / "clone")[0])
        finetune(policy, space, env, folder, settings, progress=False)
        tuned, _ = load_checkpoint(folder / "policy")
    assert type(tuned.policy.module) is TenLines
    assert tuned.policy_space == space.policy_space


def test_a_policy_of_another_space_is_not_written_with_this_one(dataset, tmp_path):
    policy = small(dataset, "regression")
    save_checkpoint(tmp_path, policy, make_space(dataset.metadata))
    with pytest.raises(SpaceError, match=r"expected model space"):
        save_checkpoint(tmp_path, policy, make_space(dataset.metadata, "tokens"))
    (tmp_path / "model_space.json").write_text('{"mode": "min_max"}')
    with pytest.raises(SpaceError, match=r"load_checkpoint: expected the space of the"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("head", get_args(Head))
def test_a_task_with_images_only_is_trained_saved_and_evaluated(head, tmp_path):
    env = TabletopEnv(2, image_size=16, seed=0)
    full = collect(env, env.make_expert(), 2, folder=tmp_path / "data", progress=False)
    nothing = {"state_dim": None, "state_names": None, "state_units": None}
    blind = DemonstrationDataset(
        full.frames.exclude(("observation", "state"), ("next", "observation")),
        replace(full.metadata, **nothing, state_statistics=None),
        full.instructions,
    )
    policy = make_policy(blind, chunk_size=4, head=head, hidden=16)
    assert ("observation", "state") not in policy.in_keys
    space = make_space(blind.metadata, head)
    settings = TrainingSettings(steps=1, batch_size=4)
    train_behavior_cloning(policy, blind, settings, space=space, progress=False)
    save_checkpoint(tmp_path / "policy", policy, space)
    env = TransformedEnv(env, ExcludeTransform(("observation", "state")))
    executor = load_executor(tmp_path / "policy", metadata=blind.metadata)
    assert len(evaluate(env, executor, 2, progress=False)) == 2
