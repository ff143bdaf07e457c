from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import InteractionType, set_interaction_type
from torch import nn

from torchrl_vla.policies import FlowSDENoise, FlowVLAWrapper
from torchrl_vla.schema import (
    GUIDE_CHUNK_KEY,
    GUIDE_WEIGHT_KEY,
    NOISE_SEED_KEY,
    MissingKeyError,
    SchemaError,
)

H, A, K = 3, 2, 5


class LinearFlow(FlowVLAWrapper):
    """A velocity that is linear in what it reads."""

    def __init__(self, **options):
        super().__init__(action_dim=A, chunk_size=H, num_steps=K, **options)
        self.weights = nn.Parameter(torch.tensor([0.3, -0.7, 2.0]))

    def encode(self, tensordict):
        return tensordict["state"].reshape(-1, 1)

    def velocity(self, condition, x, t):
        a, b, c = self.weights
        return a * condition[:, :, None] + b * x + c * t[:, None, None]


def batch(*shape: int) -> TensorDict:
    generator = torch.Generator().manual_seed(3)
    return TensorDict(
        state=torch.randn(*shape, 1, generator=generator),
        action_chunk=torch.randn(*shape, H, A, generator=generator),
        batch_size=shape,
    )


def run(policy, td, kind=InteractionType.DETERMINISTIC):
    with set_interaction_type(kind), torch.no_grad():
        return policy(td.exclude("action_chunk"))


def test_deterministic_steps_are_eulers_from_zero():
    td = batch(4)
    path = run(LinearFlow(), td)["denoising_path"]
    x = torch.zeros(4, H, A)
    for k in range(K):
        assert torch.equal(path[:, k], x)
        x = x + (0.3 * td["state"][:, :, None] - 0.7 * x + 2.0 * k / K) / K
        torch.testing.assert_close(path[:, k + 1], x)


def test_the_chunk_is_the_end_of_the_path_and_has_a_gradient():
    policy = LinearFlow(noise=FlowSDENoise())
    with set_interaction_type(InteractionType.DETERMINISTIC):
        td = policy(batch(2, 3).exclude("action_chunk"))
    assert td["denoising_path"].shape == (2, 3, K + 1, H, A)
    assert torch.equal(td["action_chunk"], td["denoising_path"][..., -1, :, :])
    assert td["action_chunk"].requires_grad
    assert not td["denoising_path"].requires_grad


def test_random_paths_without_noise_follow_the_ode_from_random_starts():
    torch.manual_seed(0)
    policy = LinearFlow()
    td = run(policy, batch(500), InteractionType.RANDOM)
    start, x = td["denoising_path"][:, 0], td["denoising_path"][:, 0]
    assert abs(start.mean()) < 4 / 3000**0.5
    assert abs(start.std() - 1) < 4 / 6000**0.5
    for k in range(K):
        x = x + (0.3 * td["state"][:, :, None] - 0.7 * x + 2.0 * k / K) / K
    torch.testing.assert_close(td["action_chunk"], x)


def test_only_a_policy_with_noise_writes_log_probs():
    policy, td = LinearFlow(), batch(2)
    assert policy.out_keys == ["action_chunk", "denoising_path"]
    assert "log_probs" not in run(policy, td)
    policy.noise = FlowSDENoise(0.5)
    announced = ["action_chunk", "denoising_path", "log_probs", "element_log_probs"]
    assert policy.out_keys == announced
    answer = run(policy, td)
    assert answer["element_log_probs"].shape == (2, H, A)
    policy.noise = None
    assert policy.out_keys == announced[:2]
    with pytest.raises(
        SchemaError, match=r"LinearFlow: .* no log-probability\. .*noise = FlowSDENoise"
    ):
        policy.log_prob(answer)


def test_noise_does_not_change_the_deterministic_answer():
    td = batch(3)
    expected = run(LinearFlow(), td)["action_chunk"]
    answer = run(LinearFlow(noise=FlowSDENoise(1.0)), td)["action_chunk"]
    assert torch.equal(answer, expected)


@pytest.mark.parametrize("time_alpha", [1.0, 1.5])
def test_errors_are_those_of_the_naive_regression(time_alpha):
    policy, td = LinearFlow(), batch(2, 3)
    errors = policy.denoising_errors(
        td,
        generator=torch.Generator().manual_seed(5),
        time_alpha=time_alpha,
    )
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(6, H, A, generator=generator).reshape(2, 3, H, A)
    share = torch.rand(6, generator=generator).reshape(2, 3) ** (1 / time_alpha)
    for i in range(2):
        for j in range(3):
            data, time = td["action_chunk"][i, j], 1 - share[i, j]
            x = time * data + (1 - time) * noise[i, j]
            velocity = 0.3 * td["state"][i, j] - 0.7 * x + 2.0 * time
            expected = (velocity - (data - noise[i, j])) ** 2
            torch.testing.assert_close(errors[i, j], expected)


def test_emphasis_on_noise_draws_its_share_from_a_beta_distribution():
    class Clock(LinearFlow):
        def velocity(self, condition, x, t):
            self.seen = t
            return x

    policy = Clock()
    for alpha in (1.0, 1.5):
        policy.denoising_errors(
            batch(20_000),
            generator=torch.Generator().manual_seed(0),
            time_alpha=alpha,
        )
        share = 1 - policy.seen
        # Beta(alpha, 1) has mean alpha / (alpha + 1) and a standard deviation < 0.3
        assert abs(share.mean() - alpha / (alpha + 1)) < 4 * 0.3 / 20_000**0.5
        assert share.min() >= 0
        assert share.max() <= 1


def guided(td: TensorDict, weight: torch.Tensor) -> TensorDict:
    guide = torch.full((*td.batch_size, H, A), 0.8)
    return td.copy().set(GUIDE_CHUNK_KEY, guide).set(GUIDE_WEIGHT_KEY, weight)


@pytest.mark.parametrize(
    "kind", [InteractionType.DETERMINISTIC, InteractionType.RANDOM]
)
def test_steps_of_the_ode_are_guided_as_published(kind):
    td, weight = batch(2, 2), torch.tensor([1.0, 0.4, 0.0]).expand(2, 2, H)
    answer = run(LinearFlow(), guided(td, weight), kind)
    x = answer["denoising_path"][:, :, 0]
    for k in range(K):
        t = k / K
        v = 0.3 * td["state"][..., None] - 0.7 * x + 2.0 * t
        error = weight[..., None] * (0.8 - (x + (1 - t) * v))
        strength = K if t == 0 else min(K, (t**2 + (1 - t) ** 2) / (t * (1 - t)))
        x = x + (v + strength * (1 - 0.7 * (1 - t)) * error) / K
    torch.testing.assert_close(answer["action_chunk"], x)
    free = run(LinearFlow(), td, kind)["action_chunk"]
    assert not torch.allclose(free[:, :, :2], x[:, :, :2])


def test_a_guide_without_influence_changes_nothing():
    td = batch(3)
    free = run(LinearFlow(), td)["action_chunk"]
    chunk = run(LinearFlow(), guided(td, torch.zeros(3, H)))["action_chunk"]
    torch.testing.assert_close(chunk, free, rtol=0, atol=1e-6)  # other order of sums


def test_noisy_steps_refuse_a_guide():
    policy = LinearFlow(noise=FlowSDENoise())
    td = guided(batch(3), torch.ones(3, H))
    with pytest.raises(
        SchemaError, match=r"LinearFlow: expected no guide where .* drawn"
    ):
        run(policy, td, InteractionType.RANDOM)
    chunk = run(policy, td)["action_chunk"]
    assert torch.equal(chunk, run(LinearFlow(), td)["action_chunk"])


def test_a_guide_that_does_not_fit_is_refused():
    td = guided(batch(3), torch.ones(3, H))
    with pytest.raises(
        MissingKeyError, match=r"at 'guide_weight', got only 'guide_chunk'"
    ):
        run(LinearFlow(), td.exclude(GUIDE_WEIGHT_KEY))
    td[GUIDE_CHUNK_KEY] = torch.zeros(3, H + 1, A)
    with pytest.raises(
        SchemaError, match=r"guide_chunk \[3, 3, 2\] .* got \[3, 4, 2\]"
    ):
        run(LinearFlow(), td)


def test_the_guide_is_an_optional_input():
    assert LinearFlow().optional_in_keys == [
        NOISE_SEED_KEY,
        GUIDE_CHUNK_KEY,
        GUIDE_WEIGHT_KEY,
    ]
    assert not {GUIDE_CHUNK_KEY, GUIDE_WEIGHT_KEY} & set(LinearFlow().in_keys)


def test_a_condition_of_another_length_is_refused():
    class Lost(LinearFlow):
        def encode(self, tensordict):
            return torch.zeros(1, 1)

    with pytest.raises(SchemaError, match=r"Lost: .* N = 6 from encode.* got \[1, 1\]"):
        run(Lost(), batch(2, 3))


def test_a_missing_or_misshapen_target_is_named():
    policy, td = LinearFlow(), batch(2)
    with pytest.raises(
        MissingKeyError, match=r"a target \[\*B, H, A\] at 'action_chunk'"
    ):
        policy.denoising_errors(td.exclude("action_chunk"))
    td["action_chunk"] = torch.zeros(2, H + 1, A)
    with pytest.raises(
        SchemaError, match=r"\[2, 3, 2\] from the target, got \[2, 4, 2\]"
    ):
        policy.denoising_errors(td)


def test_a_number_of_steps_that_is_none_is_refused():
    class Any(LinearFlow):
        def __init__(self):
            FlowVLAWrapper.__init__(self, action_dim=1, chunk_size=1, num_steps=0)

    with pytest.raises(
        ValueError, match=r"positive int at argument 'num_steps', got 0"
    ):
        Any()
