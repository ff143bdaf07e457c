from __future__ import annotations

from typing import get_args

import pytest
import torch
from seeded_loss import Seeded

from torchrl_vla.data import collect
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.policies import (
    FlowSDENoise,
    TinyDiffusionVLA,
    TinyFlowVLA,
    TinyGaussianVLA,
    TinyTokenVLA,
    TinyVLA,
)
from torchrl_vla.recipes import (
    Head,
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
from torchrl_vla.schema import SchemaError
from torchrl_vla.testing import check_loss
from torchrl_vla.tokenizers import VocabTailActionTokenizer

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
        policy, dataset, space=space, steps=60, batch_size=32, progress=False
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
    with pytest.raises(TypeError, match=r"expected a ContinuousVLAWrapper, .*Linear"):
        make_cloning_loss(torch.nn.Linear(1, 1))


def test_another_tokenizer_is_not_written(dataset, tmp_path):
    policy = small(dataset, "tokens")
    policy.action_tokenizer = VocabTailActionTokenizer(21, full_vocab_size=100)
    with pytest.raises(SchemaError, match=r"expected a UniformActionTokenizer, got Vo"):
        save_checkpoint(tmp_path, policy, make_space(dataset.metadata, "tokens"))
