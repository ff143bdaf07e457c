"""Noise of sampling policies as a function of the episode's seed and the step."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import InteractionType, set_interaction_type
from tiny_options import make_tiny
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_vla.envs import TabletopEnv
from torchrl_vla.evaluation import compare_policies, evaluate
from torchrl_vla.execution import (
    AsyncExecutor,
    MultiStepActorWrapper,
    RealTimeChunking,
    StepClockWorker,
    TemporalEnsemble,
)
from torchrl_vla.policies import (
    FlowSDENoise,
    LearnedNoise,
    TinyDiffusionVLA,
    TinyFlowVLA,
    TinyGaussianVLA,
    TinyTokenVLA,
    TokenSampling,
)
from torchrl_vla.policies.gaussian.gaussian_distribution import GaussianDistribution
from torchrl_vla.policies.tokens.token_distribution import TokenDistribution
from torchrl_vla.rollout import episode_seeds, noise_seeds, run_episodes
from torchrl_vla.tokenizers import UniformActionTokenizer

H, A = 4, 2
HEADS = ("tokens", "gaussian", "flow", "flow-sde", "flow-learned", "diffusion")


def make_env(num_envs, **options):
    return TabletopEnv(num_envs, image_size=16, max_steps=12, **options)


def make_policy(head, seed=0):
    options = {
        "action_dim": A,
        "chunk_size": H,
        "state_dim": 2,
        "instructions": make_env(1).instructions,
        "hidden": 32,
    }
    torch.manual_seed(seed)
    if head == "tokens":
        tokenizer = UniformActionTokenizer(16, low=-1.0, high=1.0)
        policy = make_tiny(TinyTokenVLA, action_tokenizer=tokenizer, **options)
    elif head == "gaussian":
        policy = make_tiny(TinyGaussianVLA, **options)
    elif head == "diffusion":
        policy = make_tiny(TinyDiffusionVLA, **options)
    else:
        policy = make_tiny(TinyFlowVLA, **options)
        if head == "flow-sde":
            policy.noise = FlowSDENoise(0.5)
        elif head == "flow-learned":
            policy.noise = LearnedNoise(policy.condition_dim, H, A)
    for weight in policy.parameters():  # outputs begin at 0 otherwise
        weight.data += 0.05 * torch.randn_like(weight)
    return policy.eval()


def sampled_actions(executor, num_envs, count=7):
    """Return the action of every (episode, frame) of sampled episodes."""
    seeds = episode_seeds(0, count, "evaluation")
    actions = {}
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        for step in run_episodes(make_env(num_envs), executor, seeds):
            for env_index, episode in enumerate(step.episode.tolist()):
                if episode >= 0:
                    at = episode, int(step.frame[env_index])
                    actions[at] = step.data["action"][env_index].tolist()
    return actions


@pytest.mark.parametrize("head", HEADS)
def test_sampled_episodes_do_not_depend_on_the_number_of_environments(head):
    executor = MultiStepActorWrapper(make_policy(head), replan_interval=3)
    results, actions = [], []
    for num_envs in (1, 3, 8):
        torch.manual_seed(num_envs)  # nothing is drawn from it
        result = evaluate(
            make_env(num_envs), executor, 7, deterministic=False, progress=False
        )
        results.append(result.episodes)
        actions.append(sampled_actions(executor, num_envs))
    assert results[0] == results[1] == results[2]
    assert actions[0] == actions[1] == actions[2]  # bit for bit
    assert len({tuple(action) for action in actions[0].values()}) > 7


def make_executor(name, policy):
    options = {"action_reference": "absolute"}
    if name == "ensemble":
        return TemporalEnsemble(policy, **options)
    if name == "real-time":
        options |= {"replan_interval": 2, "inference_delay": 1}
        return RealTimeChunking(policy, **options)
    return AsyncExecutor(policy, request_at=0, worker=StepClockWorker(0), **options)


@pytest.mark.parametrize("name", ["ensemble", "real-time", "async"])
def test_every_executor_hands_the_noise_seed_to_the_policy(name):
    actions = [
        sampled_actions(make_executor(name, make_policy("flow")), num_envs)
        for num_envs in (1, 3)
    ]
    assert actions[0] == actions[1]


def observations(n, seed=0):
    td = make_env(n, seed=seed).reset()
    frames = torch.zeros(n, dtype=torch.int64)
    return td.set("noise_seed", noise_seeds(td["episode_seed"], frames))


def sampled(policy, td):
    with torch.no_grad(), set_interaction_type(InteractionType.RANDOM):
        return policy(td.copy())


@pytest.mark.parametrize("head", HEADS)
def test_a_sample_is_a_function_of_its_noise_seed(head):
    policy, td = make_policy(head), observations(5)
    together = sampled(policy, td)
    for index in range(5):
        alone = sampled(policy, td[index : index + 1])
        for key in policy.out_keys:
            assert torch.equal(together[key][index : index + 1], alone[key])
    other = sampled(policy, td.copy().set("noise_seed", td["noise_seed"] + 1))
    assert not torch.equal(together["action_chunk"], other["action_chunk"])


@pytest.mark.parametrize("head", ["flow-sde", "diffusion", "gaussian", "tokens"])
def test_the_log_probability_is_that_of_the_seeded_sample(head):
    policy, td = make_policy(head), observations(4)
    td = sampled(policy, td)
    with torch.no_grad():
        assert torch.equal(policy.log_prob(td), td["log_probs"])


@pytest.mark.parametrize("head", HEADS)
def test_without_a_noise_seed_the_global_generator_draws_as_before(head):
    policy, td = make_policy(head), observations(4).exclude("noise_seed")
    torch.manual_seed(3)
    first = sampled(policy, td)
    torch.manual_seed(3)
    with torch.no_grad():
        expected = policy.get_dist(td).sample()
    assert torch.equal(first[policy.sample_key], expected)
    assert not torch.equal(sampled(policy, td)[policy.sample_key], expected)


@pytest.mark.parametrize("head", HEADS)
def test_a_mode_needs_no_noise(head):
    policy, td = make_policy(head), observations(4)
    other = td.copy().set("noise_seed", td["noise_seed"] + 1)
    with torch.no_grad(), set_interaction_type(InteractionType.DETERMINISTIC):
        one, two = (policy(td)["action_chunk"] for td in (td, other))
    assert torch.equal(one, two)


def test_two_flows_that_are_compared_start_from_the_same_noise():
    starts = []
    policies = [make_policy("flow", seed) for seed in (0, 1)]
    for policy in policies:
        noise = []
        starts.append(noise)
        policy.register_forward_hook(
            lambda module, inputs, output, noise=noise: noise.extend(
                zip(output["noise_seed"].tolist(), output["denoising_path"][:, 0])
            )
        )
    executors = [MultiStepActorWrapper(policy) for policy in policies]
    options = {"block": 4, "deterministic": False, "progress": False}
    compare_policies(make_env(4), *executors, 4, **options)
    first, second = (dict(noise) for noise in starts)
    shared = first.keys() & second.keys()
    assert len(shared) >= 4
    assert all(torch.equal(first[seed], second[seed]) for seed in shared)
    assert len({tuple(noise.flatten().tolist()) for noise in first.values()}) > 4


def chi_square(counts, probabilities, n):
    expected = n * probabilities
    return ((counts - expected) ** 2 / expected)[probabilities > 0].sum()


@pytest.mark.parametrize("sampling", [None, TokenSampling(temperature=2.0, top_k=3)])
def test_seeded_tokens_follow_the_distribution(sampling):
    n, logits = 40_000, torch.tensor([[2.0, 0.0, -1.0, 1.0], [0.0, 0.0, 0.0, 3.0]])
    dist = TokenDistribution(logits.view(1, 1, 2, 4).expand(n, -1, -1, -1), sampling)
    tokens = dist.sample_with_seeds(torch.arange(n))
    assert tokens.shape == (n, 1, 2)
    assert tokens.dtype == torch.int64
    for dimension in range(2):
        counts = tokens[:, 0, dimension].bincount(minlength=4)
        probabilities = dist.logits[0, 0, dimension].exp()
        assert (counts[probabilities == 0] == 0).all()
        # 3 degrees of freedom at most: above 21.1 with probability 1e-4
        assert chi_square(counts, probabilities, n) < 21.1
    pairs = (4 * tokens[:, 0, 0] + tokens[:, 0, 1]).bincount(minlength=16)
    both = dist.logits[0, 0].exp()
    joint = (both[0].unsqueeze(-1) * both[1]).flatten()
    # the two dimensions are independent; 15 degrees of freedom: 44.3 at 1e-4
    assert chi_square(pairs, joint, n) < 44.3


def test_a_token_that_is_not_allowed_is_never_drawn():
    allowed = torch.tensor([False, True, False, True, False])
    dist = TokenDistribution(torch.zeros(5000, 1, 1, 5), allowed_tokens=allowed)
    tokens = dist.sample_with_seeds(torch.arange(5000))
    assert set(tokens.unique().tolist()) == {1, 3}


def test_seeded_chunks_follow_the_gaussian():
    n = 50_000
    mean = torch.tensor([[1.0, -2.0]]).expand(n, 1, 2)
    dist = GaussianDistribution(mean, torch.tensor([0.5, 2.0]).log())
    chunks = dist.sample_with_seeds(torch.arange(n))
    assert chunks.dtype == torch.float32
    error = (chunks.mean(0) - mean[0]).abs() / torch.tensor([0.5, 2.0])
    assert error.max() < 5 / n**0.5  # 5 standard deviations of a mean
    ratio = chunks.std(0) / torch.tensor([0.5, 2.0])
    assert (ratio - 1).abs().max() < 5 / (2 * n) ** 0.5


def test_batches_of_any_shape_are_sampled():
    dist = TokenDistribution(torch.zeros(2, 3, H, A, 5))
    seeds = torch.arange(6).view(2, 3)
    tokens = dist.sample_with_seeds(seeds)
    flat = TokenDistribution(torch.zeros(6, H, A, 5)).sample_with_seeds(torch.arange(6))
    assert torch.equal(tokens.flatten(0, 1), flat)
    policy = make_policy("flow")
    td = observations(6)
    together = sampled(policy, td.view(2, 3))["action_chunk"]
    assert torch.equal(together.flatten(0, 1), sampled(policy, td)["action_chunk"])
    single = sampled(policy, td[2])
    assert isinstance(single, TensorDict)
    assert torch.equal(single["action_chunk"], together[0, 2])
