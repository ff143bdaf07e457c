from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import InteractionType, set_interaction_type

from torchrl_vla.policies import (
    BackboneConfig,
    BestOfN,
    HeadConfig,
    NoiseSpacePolicy,
    ObservationEncoder,
    OneStepPolicy,
    ResidualPolicy,
    TinyChunkCritic,
    TinyDiffusionVLA,
    TinyFlowVLA,
    TinyGaussianVLA,
    TinyTokenVLA,
    TinyVLA,
    load_policy,
    save_policy,
)
from torchrl_vla.schema import InstructionTable, SchemaError
from torchrl_vla.testing import check_policy
from torchrl_vla.tokenizers import UniformActionTokenizer

SIZES = {
    "action_dim": 2,
    "chunk_size": 4,
    "backbone": BackboneConfig(state_dim=3, cameras=(), hidden=16),
}
HEAD = HeadConfig(hidden=16)
TABLE = InstructionTable(["pick", "place"])


def observations(n=6):
    torch.manual_seed(1)
    data = TensorDict({"observation": {"state": torch.randn(n, 3)}}, [n])
    texts = [TABLE.texts[i % 2] for i in range(n)]
    return data.set("language_instruction", TABLE.encode(texts))


def make_base(kind=TinyFlowVLA, **options):
    torch.manual_seed(0)
    policy = kind(**SIZES, instructions=TABLE, **options)
    return policy.eval()


def wake(policy):
    """Let the network of a fresh policy say something."""
    torch.manual_seed(2)
    for name, parameter in policy.named_parameters():
        if name.startswith(("correction", "choice", "network")):
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    return policy


def encoder_of(base):
    return ObservationEncoder.from_policy(base)


def residual(base=None):
    base = make_base(TinyVLA) if base is None else base
    return ResidualPolicy(base, encoder_of(base), bound=0.2, head=HEAD)


def noise_space(base=None):
    base = make_base() if base is None else base
    return NoiseSpacePolicy(base, encoder_of(base), head=HEAD)


def best_of(n=4, base=None):
    base = make_base() if base is None else base
    return BestOfN(base, TinyChunkCritic.from_policy(base), n)


def one_step():
    return OneStepPolicy.from_policy(make_base(), HEAD)


POLICIES = {
    "residual of a regression": residual,
    "residual of a flow": lambda: residual(make_base()),
    "residual of tokens": lambda: residual(
        make_base(
            TinyTokenVLA,
            action_tokenizer=UniformActionTokenizer(8, low=-1.0, high=1.0),
        )
    ),
    "noise of a flow": noise_space,
    "noise of a diffusion": lambda: noise_space(make_base(TinyDiffusionVLA)),
    "best of a flow": best_of,
    "best of a gaussian": lambda: best_of(base=make_base(TinyGaussianVLA)),
    "one step": one_step,
}


@pytest.mark.parametrize("name", POLICIES)
def test_each_keeps_the_contract_of_a_policy(name):
    check_policy(wake(POLICIES[name]()).eval(), observations())


@pytest.mark.parametrize("name", POLICIES)
def test_each_is_stored_and_read_back_equal(name, tmp_path):
    policy = wake(POLICIES[name]()).eval()
    again = load_policy(save_policy(tmp_path / "policy", policy))
    assert type(again) is type(policy)
    found, expected = (p(observations())["action_chunk"] for p in (again, policy))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", POLICIES)
def test_a_sample_is_a_function_of_its_seed(name):
    policy = wake(POLICIES[name]()).eval()
    data = observations().set("noise_seed", torch.arange(6) // 2)
    data["observation", "state"][1] = data["observation", "state"][0]
    data["language_instruction"][1] = data["language_instruction"][0]
    with set_interaction_type(InteractionType.RANDOM):
        first = policy(data.clone())["action_chunk"]
        torch.manual_seed(99)
        again = policy(data.clone())["action_chunk"]
        other = policy(data.clone().set("noise_seed", torch.arange(6) + 50))
    assert torch.equal(first, again)
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first, other["action_chunk"])


@pytest.mark.parametrize("make", [residual, noise_space])
def test_an_untrained_one_acts_as_the_policy_inside(make):
    policy = make()
    with torch.no_grad():
        expected = policy.policy(observations())["action_chunk"]
    assert torch.equal(policy(observations())["action_chunk"], expected)


@pytest.mark.parametrize("kind", [InteractionType.RANDOM, InteractionType.MODE])
def test_a_correction_stays_within_its_bound(kind):
    base = make_base(TinyVLA)
    policy = ResidualPolicy(base, encoder_of(base), bound=(0.1, 0.3), head=HEAD)
    for parameter in policy.correction.parameters():
        parameter.data.mul_(0).add_(3 * torch.randn_like(parameter))
    chunk = base(observations())["action_chunk"]
    with set_interaction_type(kind):
        apart = (policy(observations())["action_chunk"] - chunk).abs()
    largest = apart.flatten(0, 1).max(0)[0]
    assert (largest <= torch.tensor([0.1, 0.3]) + 1e-6).all()
    assert (largest > torch.tensor([0.09, 0.27])).all()


def test_the_chunk_is_what_the_flow_makes_of_the_chosen_noise():
    policy = wake(noise_space())
    out = policy(observations())
    path = policy.policy.get_dist(observations()).flow_from(out["chunk_noise"])
    torch.testing.assert_close(out["action_chunk"], path[:, -1])
    assert 0 < out["chunk_noise"].abs().max() <= 1.5


def test_only_what_is_around_the_frozen_policy_is_trained():
    for policy in (residual(), noise_space(), best_of()):
        assert not any(p.requires_grad for p in policy.policy.parameters())
        assert any(p.requires_grad for p in policy.parameters())
        policy.train()
        assert not policy.policy.training


def test_what_is_stored_replaces_the_frozen_parts():
    policy = wake(residual())
    expected = policy.get_dist(observations()).mode
    stored = policy.store(observations())
    kept = stored.select("observation_features", "base_chunk")
    assert torch.equal(policy.get_dist(kept).mode, expected)


def test_the_first_of_n_is_the_policy_itself():
    base = make_base()
    chunk = best_of(1, base)(observations())["action_chunk"]
    assert torch.equal(chunk, base(observations())["action_chunk"])


def test_the_best_candidate_is_the_one_that_the_critic_values_most():
    policy = best_of(5)
    candidates = policy.candidates(observations())
    assert candidates.shape == (5, 6, 4, 2)
    features = policy.critic.encode(observations())
    values = [policy.critic.values(features, c).min(0)[0] for c in candidates]
    chosen = policy(observations())["action_chunk"]
    by_hand = [candidates[int(torch.stack(values)[:, i].argmax()), i] for i in range(6)]
    assert torch.equal(chosen, torch.stack(by_hand))


def test_policies_that_cannot_be_steered_that_way_are_refused():
    plain = make_base(TinyVLA)
    critic = TinyChunkCritic.from_policy(plain)
    with pytest.raises(SchemaError, match=r"BestOfN: expected a policy with get_dist"):
        BestOfN(plain, critic, 4)
    with pytest.raises(ValueError, match=r"positive int at argument 'n'"):
        BestOfN(make_base(), critic, 0)
    noisy = TinyChunkCritic(
        encoder_of(plain), action_dim=2, chunk_size=4, action_key="chunk_noise"
    )
    with pytest.raises(SchemaError, match=r"got one of \[4, 2\] at 'chunk_noise'"):
        BestOfN(make_base(), noisy, 4)
    with pytest.raises(ValueError, match=r"expected a bound > 0, or 2, one per"):
        ResidualPolicy(plain, encoder_of(plain), bound=(0.1,))
    with pytest.raises(ValueError, match=r"expected bound > 0, got 0\.0"):
        NoiseSpacePolicy(make_base(), encoder_of(plain), bound=0.0)
    with pytest.raises(ValueError, match=r"HeadConfig: expected hidden > 0, got 0"):
        HeadConfig(hidden=0)


def test_the_densities_of_squashed_chunks_are_those_of_torchs_tanh_normal():
    from torch.distributions import Normal, TransformedDistribution
    from torch.distributions.transforms import AffineTransform, TanhTransform

    from torchrl_vla.policies import SquashedChunkDistribution

    torch.manual_seed(0)
    mean, log_std, centre = 0.5 * torch.randn(3, 5, 4, 2, dtype=torch.float64)
    bound = torch.tensor([0.5, 2.0], dtype=torch.float64)
    dist = SquashedChunkDistribution(mean, log_std - 1, bound, centre)
    chunk, found = dist.rsample_with_log_probs()
    reference = TransformedDistribution(
        Normal(mean, (log_std - 1).exp()),
        [TanhTransform(cache_size=1), AffineTransform(centre, bound)],
    )
    torch.testing.assert_close(found, reference.log_prob(chunk))
    torch.testing.assert_close(
        dist.element_log_probs(chunk), found, atol=1e-3, rtol=1e-3
    )
    mode = centre + bound * mean.tanh()
    torch.testing.assert_close(dist.mode, mode)
