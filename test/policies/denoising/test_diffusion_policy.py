from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import InteractionType, set_interaction_type

from torchrl_vla.policies import DiffusionConfig, DiffusionVLAWrapper
from torchrl_vla.policies.denoising.diffusion_policy import cosine_signal
from torchrl_vla.schema import SchemaError

MEAN, STD = 1.5, 0.5  # of the Gaussian data


class GaussianDiffusion(DiffusionVLAWrapper):
    """The exact noise predictor for data from N(MEAN, STD^2)."""

    def encode(self, tensordict):
        return torch.zeros(tensordict.batch_size.numel(), 1)

    def predict_noise(self, condition, x, level):
        kept = self.signal[level].double()[:, None, None]
        variance = kept * STD**2 + 1 - kept
        noise = (1 - kept).sqrt() / variance * (x - kept.sqrt() * MEAN)
        return noise.to(x.dtype)


def model(**options) -> GaussianDiffusion:
    return GaussianDiffusion(
        action_dim=1, chunk_size=1, diffusion=DiffusionConfig(**options)
    )


def run(policy, *shape: int, kind=InteractionType.RANDOM) -> TensorDict:
    torch.manual_seed(0)
    with torch.no_grad(), set_interaction_type(kind):
        return policy(TensorDict(batch_size=shape))


def test_the_signal_falls_as_published():
    signal = cosine_signal(100).double()
    assert signal.shape == (101,)
    assert signal[0] == 1
    f = [math.cos((i / 100 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(100)]
    expected = torch.tensor(f, dtype=torch.float64) / f[0]
    torch.testing.assert_close(signal[:100], expected, rtol=1e-6, atol=0)
    # f(100) is 0, but no level takes more than 0.999 of the variance that is left.
    torch.testing.assert_close(signal[100], signal[99] * 0.001, rtol=1e-6, atol=0)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_samples_are_distributed_as_the_data(eta):
    rows = 20_000
    policy = model(num_steps=100, eta=eta, min_std=0)
    chunk = run(policy, rows)["action_chunk"].double()
    # Four standard errors, and an error of order 1 / K of the steps.
    assert abs(chunk.mean() - MEAN) < 4 * STD / rows**0.5 + 0.01
    assert abs(chunk.var() / STD**2 - 1) < 4 * (2 / rows) ** 0.5 + 0.05


def test_a_step_with_eta_one_is_the_posterior_of_ddpm():
    policy = model(num_steps=10, num_levels=10, eta=1.0)
    x, step = torch.tensor([[[0.3]], [[-1.0]]]), torch.tensor([4, 9])
    mean = policy.mean(torch.zeros(2, 1), x, step).flatten()
    std = policy.std(torch.zeros(2, 1), step).flatten()
    for i, level in enumerate((6, 1)):
        before, after = policy.signal[level].double(), policy.signal[level - 1].double()
        alpha, beta = before / after, 1 - before / after
        noise = policy.predict_noise(None, x[i : i + 1], torch.tensor([level]))
        data = (x[i] - (1 - before).sqrt() * noise[0]) / before.sqrt()
        # Ho et al. (2020), equation 7
        expected = after.sqrt() * beta / (1 - before) * data
        expected += alpha.sqrt() * (1 - after) / (1 - before) * x[i]
        torch.testing.assert_close(mean[i].double(), expected.double().squeeze())
        posterior = ((1 - after) / (1 - before) * beta).sqrt().item()
        assert std[i].item() == pytest.approx(max(posterior, 0.1), rel=1e-5)


@pytest.mark.parametrize("steps", [1, 3, 7, 100])
def test_levels_are_evenly_spaced_from_noise_to_data(steps):
    levels = model(num_steps=steps)._level(torch.arange(steps + 1)).tolist()
    assert levels[0] == 100
    assert levels[-1] == 0
    gaps = {before - after for before, after in pairwise(levels)}
    assert max(gaps) - min(gaps) <= 1
    assert min(gaps) >= 1


def test_no_sampled_step_is_quieter_than_the_minimum():
    policy = model(num_steps=5, eta=0.3, min_std=0.2)
    std = policy.std(torch.zeros(5, 1), torch.arange(5)).flatten()
    assert (std >= 0.2).all()
    assert std[-1].item() == pytest.approx(0.2)  # sigma is 0 there
    path = run(policy, 5000)["denoising_path"]
    end = policy.mean(torch.zeros(5000, 1), path[:, -2], torch.full((5000,), 4))
    spread = (path[:, -1] - end).std()
    assert abs(spread - 0.2) < 4 * 0.2 / 10_000**0.5


def test_the_deterministic_answer_is_that_of_eta_zero_from_the_prior_mean():
    path = run(model(eta=1.0), 2, kind=InteractionType.DETERMINISTIC)["denoising_path"]
    quiet = model(eta=0.0, min_std=0)
    x = torch.zeros(2, 1, 1)
    for k in range(8):
        assert torch.equal(path[:, k], x)
        x = quiet.mean(torch.zeros(2, 1), x, torch.full((2,), k))
    assert torch.equal(path[:, -1], x)


def test_the_estimate_of_the_data_is_bounded():
    policy = model(num_steps=1, data_bound=1.2)
    chunk = run(policy, 4, kind=InteractionType.DETERMINISTIC)["action_chunk"]
    assert torch.equal(chunk, torch.full((4, 1, 1), 1.2))  # for a mean of 1.5


def test_without_a_minimum_no_path_has_a_likelihood():
    policy = model(min_std=0)
    assert policy.out_keys == ["action_chunk", "denoising_path"]
    answer = run(policy, 2)
    assert "log_probs" not in answer
    with pytest.raises(SchemaError, match=r"no log-probability\. Build it with Dif"):
        policy.log_prob(answer)


def test_errors_are_those_of_the_naive_regression():
    policy = GaussianDiffusion(
        action_dim=2, chunk_size=3, diffusion=DiffusionConfig(num_levels=20)
    )
    data = torch.randn(4, 2, 3, 2, generator=torch.Generator().manual_seed(1))
    errors = policy.denoising_errors(
        TensorDict(action_chunk=data, batch_size=[4, 2]),
        generator=torch.Generator().manual_seed(5),
    )
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(8, 3, 2, generator=generator)
    level = torch.randint(1, 21, (8,), generator=generator)
    assert level.min() >= 1
    for i in range(8):
        kept = policy.signal[level[i]].item()
        x = kept**0.5 * data[i // 2, i % 2] + (1 - kept) ** 0.5 * noise[i]
        variance = kept * STD**2 + 1 - kept
        predicted = (1 - kept) ** 0.5 / variance * (x - kept**0.5 * MEAN)
        torch.testing.assert_close(errors[i // 2, i % 2], (predicted - noise[i]) ** 2)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match=r"num_steps=101, num_levels=100"):
        model(num_steps=101)
    with pytest.raises(ValueError, match=r"eta in 0\.\.1 .* eta=2"):
        model(eta=2)
    with pytest.raises(ValueError, match=r"min_std >= 0, got .*min_std=-1"):
        model(min_std=-1)
