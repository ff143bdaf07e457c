"""Random numbers of LeRobot's policies as a function of ``noise_seed``."""

from __future__ import annotations

import lerobot_vla_backbones as backbones
import pytest
import torch
from lerobot_checkpoints import observe
from tabletop_smolvla import make_tabletop_smolvla

from torchrl_vla.envs import TabletopEnv
from torchrl_vla.evaluation import evaluate
from torchrl_vla.execution import MultiStepActorWrapper
from torchrl_vla.policies import LeRobotPolicyWrapper
from torchrl_vla.rollout import run_episodes

pytestmark = pytest.mark.lerobot

ROWS = 3


def load(checkpoint, name, **overrides) -> tuple[LeRobotPolicyWrapper, object]:
    made = checkpoint(name)
    policy = LeRobotPolicyWrapper.from_pretrained(made.folder, overrides=overrides)
    (td,) = observe(made, 1, ROWS)
    for transform in policy.make_environment_transform():
        if hasattr(transform, "begin"):
            transform.begin(td)
    td["noise_seed"] = torch.arange(10, 10 + ROWS)
    return policy, td


def check_is_a_function_of_the_seed(policy, td):
    chunk = policy(td.clone())["action_chunk"]
    torch.manual_seed(99)  # no other random number matters
    assert torch.equal(policy(td.clone())["action_chunk"], chunk)
    for row in range(ROWS):
        alone = policy(td[row : row + 1].clone())["action_chunk"]
        # The same noise; kernels round differently in another batch.
        assert torch.allclose(alone, chunk[row : row + 1], atol=1e-4)
    order = torch.tensor([2, 0, 1])
    assert torch.allclose(policy(td[order])["action_chunk"], chunk[order], atol=1e-4)
    td["noise_seed"] = td["noise_seed"] + torch.tensor([0, 0, 1])
    other = policy(td.clone())["action_chunk"]
    assert torch.allclose(other[:2], chunk[:2], atol=1e-4)
    assert not torch.allclose(other[2], chunk[2], atol=1e-2)
    assert torch.initial_seed() == 99


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("smolvla", {}),
        ("diffusion", {}),
        ("diffusion", {"noise_scheduler_type": "DDIM"}),
        ("diffusion-camera", {}),
    ],
    ids=["smolvla", "ddpm", "ddim", "ddpm-camera"],
)
def test_a_chunk_is_a_function_of_its_own_seed(name, overrides, checkpoint):
    policy, td = load(checkpoint, name, **overrides)
    assert policy.noise_source == "noise_seed"
    assert "noise_seed" in policy.optional_in_keys
    check_is_a_function_of_the_seed(policy, td)


@pytest.mark.skipif("pi0" not in backbones.here(), reason="needs a fork")
@pytest.mark.parametrize("name", ["pi0", "pi05"])
def test_the_pi_family_takes_its_noise_from_the_seed(name, tmp_path):
    with backbones.narrow_gemma():
        made = backbones.make_checkpoint(name, tmp_path)
        policy = LeRobotPolicyWrapper.from_pretrained(made.folder)
        (td,) = observe(made, 1, ROWS)
        td["noise_seed"] = torch.arange(10, 10 + ROWS)
        check_is_a_function_of_the_seed(policy, td)


def test_without_seeds_a_policy_samples_as_lerobot_does(checkpoint):
    policy, td = load(checkpoint, "diffusion")
    td = td.exclude("noise_seed")
    torch.manual_seed(0)
    chunk = policy(td.clone())["action_chunk"]
    assert not torch.allclose(policy(td.clone())["action_chunk"], chunk)
    torch.manual_seed(0)
    assert torch.equal(policy(td.clone())["action_chunk"], chunk)


def test_the_noise_has_the_prior_that_the_policy_was_trained_with(checkpoint):
    """A diffusion that changes nothing returns its noise, standard normal numbers."""
    policy, td = load(checkpoint, "smolvla")
    seen = {}
    model = policy.policy.model
    sample = model.sample_actions

    def record(*args, noise=None, **kwargs):
        seen["noise"] = noise
        return sample(*args, noise=noise, **kwargs)

    model.sample_actions = record
    td["noise_seed"] = torch.arange(ROWS)
    policy(td)
    noise = seen["noise"]
    assert noise.shape == (ROWS, 10, 16)
    assert noise.dtype == torch.float32
    assert abs(noise.mean().item()) < 0.15
    assert abs(noise.std().item() - 1) < 0.1


def test_an_evaluation_does_not_depend_on_the_number_of_environments(tiny_vlm):
    policy = make_tabletop_smolvla(tiny_vlm, TabletopEnv(1, image_size=32)).wrapper
    seeds, actions = [3, 1, 4], []
    for num_envs in (1, 3):
        env = TabletopEnv(num_envs, image_size=32, max_steps=9)
        policy.instructions = env.instructions
        executor = MultiStepActorWrapper(policy, replan_interval=4)
        torch.manual_seed(num_envs)
        taken = {0: [], 1: [], 2: []}
        for step in run_episodes(env, executor, seeds):
            for row, episode in enumerate(step.episode.tolist()):
                if episode >= 0:
                    taken[episode].append(step.data["action"][row])
        actions.append(torch.stack([torch.stack(taken[i]) for i in taken]))
    assert actions[0].shape == (3, 9, 2)
    assert torch.allclose(actions[0], actions[1], atol=1e-4)
    assert not torch.allclose(actions[0][0], actions[0][1], atol=1e-2)
    result = evaluate(env, executor, 1, progress=False)
    assert result.provenance["noise_source"] == "noise_seed"


@pytest.mark.parametrize(
    ("name", "source"), [("act", "none"), ("vqbet", "torch"), ("tdmpc", "torch")]
)
def test_policies_that_take_no_noise_say_so(name, source, checkpoint):
    policy, td = load(checkpoint, name)
    assert policy.noise_source == source
    assert "noise_seed" not in policy.optional_in_keys
    assert policy(td)["action_chunk"].isfinite().all()
