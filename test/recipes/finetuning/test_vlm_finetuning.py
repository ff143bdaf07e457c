"""Every head on a vision-language trunk, cloned and then improved."""

import copy

import pytest
import torch
from robot_space_fakes import RewardRight
from tiny_vlms import KINDS, make_image_encoder, tiny_vlm_folder
from torchrl.envs import TransformedEnv

from torchrl_vla.data import collect
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.policies.vlm.adaptation import base_weights
from torchrl_vla.recipes import (
    GRPO,
    PPO,
    FinetuneSettings,
    TrainingSettings,
    VLMSettings,
    finetune,
    load_checkpoint,
    make_space,
    make_vlm_policy,
    to_stochastic,
    train_behavior_cloning,
)

THREE = FinetuneSettings(
    algorithm=PPO(),
    iterations=3,
    epochs=1,
    minibatch_size=8,
    lr=1e-2,
    reward="environment",
    eval_episodes=2,
    eval_interval=3,
)


def make_env(max_steps=8):
    return TabletopEnv(4, image_size=16, num_blocks=2, max_steps=max_steps, seed=0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    env = make_env(max_steps=40)
    folder = tmp_path_factory.mktemp("data") / "demos"
    return collect(env, env.make_expert(noise=0.3), 4, folder=folder, progress=False)


def clone(dataset, kind, head, **options):
    settings = VLMSettings(
        backbone=tiny_vlm_folder(kind),
        text_length=16,
        num_steps=2,
        expert_hidden=16,
        **options,
    )
    torch.manual_seed(0)
    encoder = make_image_encoder() if kind == "causal" else None
    policy = make_vlm_policy(
        dataset, settings, chunk_size=4, head=head, image_encoder=encoder
    )
    space = make_space(dataset.metadata, head)
    training = TrainingSettings(steps=2, batch_size=4, lr=1e-3)
    train_behavior_cloning(policy, dataset, training, space=space, progress=False)
    return to_stochastic(policy), space


CASES = [
    *((kind, "flow", PPO()) for kind in KINDS),
    ("causal", "flow", GRPO(group_size=4)),
    ("smolvlm", "parallel", PPO()),
    ("smolvlm", "tokens", PPO()),
]


class Lottery(RewardRight):
    """Besides, call an episode a success by the last digits of where it is."""

    def _step(self, tensordict, next_tensordict):
        super()._step(tensordict, next_tensordict)
        state = next_tensordict["observation", "state"]
        return next_tensordict.set("success", (1e4 * state[..., :1]).sin() > 0.95)


@pytest.mark.parametrize(("kind", "head", "algorithm"), CASES)
def test_three_iterations_train_the_adapters_and_nothing_under_them(
    kind, head, algorithm, dataset, tmp_path
):
    policy, space = clone(dataset, kind, head, lora_rank=2)
    base = copy.deepcopy(base_weights(policy.trunk.model))
    trained = {n: p.detach().clone() for n, p in policy.named_parameters()}
    env = TransformedEnv(make_env(), Lottery())
    settings = FinetuneSettings(**{**vars(THREE), "algorithm": algorithm})
    result = finetune(policy, space, env, tmp_path, settings, progress=False)
    assert [row["iteration"] for row in result.log] == [1, 2, 3]
    # Unchanged weights: the learner's first ratios are those of the rollout.
    assert result.log[0]["max_ratio"] == 1.0
    assert result.log[0]["kl_approx"] == 0.0
    for name, value in base_weights(policy.trunk.model).items():
        assert torch.equal(value, base[name]), name
    adapters = [n for n in trained if ".lora_B" in n]
    named = dict(policy.named_parameters())
    assert any(not torch.equal(named[n], trained[n]) for n in adapters)
    again, _ = load_checkpoint(tmp_path / "policy")
    state = again.state_dict()
    assert all(torch.equal(state[n], v) for n, v in policy.state_dict().items())
