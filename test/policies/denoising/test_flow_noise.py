from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import InteractionType, set_interaction_type

from torchrl_vla.policies import (
    FlowNoise,
    FlowSDENoise,
    FlowVLAWrapper,
    LearnedNoise,
)
from torchrl_vla.policies.denoising.flow_noise import read_noise, write_noise

MEAN, STD = 1.5, 0.5  # of the Gaussian data
STEPS, ROWS = 200, 20_000


class GaussianFlow(FlowVLAWrapper):
    """The exact flow to N(MEAN, STD^2): x_t ~ N(t MEAN, (1 - t)^2 + t^2 STD^2)."""

    def encode(self, tensordict):
        return torch.zeros(tensordict.batch_size.numel(), 1)

    def velocity(self, condition, x, t):
        t = t[:, None, None]
        variance = (1 - t) ** 2 + (t * STD) ** 2
        # E[data - noise | x] = E[data - noise] + covariance / variance * (x - E[x])
        return MEAN + (t * STD**2 - (1 - t)) / variance * (x - t * MEAN)


def moments(noise: FlowNoise | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of 20 000 paths at t = 1/4, 1/2, 3/4 and 1."""
    torch.manual_seed(0)
    flow = GaussianFlow(action_dim=1, chunk_size=1, num_steps=STEPS, noise=noise)
    with torch.no_grad(), set_interaction_type(InteractionType.RANDOM):
        path = flow(TensorDict(batch_size=[ROWS]))["denoising_path"]
    quarters = path[:, STEPS // 4 :: STEPS // 4, 0, 0].double()
    assert quarters.shape == (ROWS, 4)
    return quarters.mean(0), quarters.var(0)


T = torch.tensor([0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
EXACT_MEAN, EXACT_VARIANCE = T * MEAN, (1 - T) ** 2 + (T * STD) ** 2
# Four standard errors of a mean and of a variance, and Euler's error of order 1 / K.
MEAN_TOLERANCE = 4 * (EXACT_VARIANCE / ROWS).sqrt() + 2 / STEPS
VARIANCE_TOLERANCE = EXACT_VARIANCE * (4 * math.sqrt(2 / ROWS) + 5 / STEPS)


@pytest.mark.parametrize("noise", [None, FlowSDENoise(0.5), FlowSDENoise(1.0)])
def test_the_sde_has_the_marginals_of_the_ode(noise):
    mean, variance = moments(noise)
    assert ((mean - EXACT_MEAN).abs() < MEAN_TOLERANCE).all()
    assert ((variance - EXACT_VARIANCE).abs() < VARIANCE_TOLERANCE).all()


def test_noise_without_the_score_does_not():
    class Uncorrected(FlowSDENoise):
        def mean(self, x, velocity, t, dt):
            return x + dt * velocity

    _, variance = moments(Uncorrected(0.5))
    assert (variance - EXACT_VARIANCE > 2 * VARIANCE_TOLERANCE).all()


def test_a_step_of_the_sde_by_hand():
    noise, t = FlowSDENoise(0.5), torch.tensor([0.5])
    x, velocity = torch.full((1, 1, 1), 2.0), torch.full((1, 1, 1), 2.0)
    # sigma^2 = 1/4; E[noise] = 2 - 1/2 * 2 = 1; score = -1 / (1/2) = -2
    assert noise.mean(x, velocity, t, 0.25).item() == 2 + 0.25 * (2 + 0.125 * -2)
    assert noise.std(torch.zeros(1, 1), t, 0.25).item() == 0.5 * 0.5


@pytest.mark.parametrize("steps", [1, 2, 4, 100])
def test_no_step_of_the_sde_is_without_noise_or_infinite(steps):
    t, dt = torch.arange(steps) / steps, 1 / steps
    std = FlowSDENoise(0.7).std(torch.zeros(steps, 1), t, dt).flatten()
    mean = FlowSDENoise(0.7).mean(torch.ones(steps, 1, 1), torch.zeros(1), t, dt)
    assert std.isfinite().all()
    assert (std > 0).all()
    assert mean.isfinite().all()
    if steps > 2:  # the pole at t = 0: the first step is as noisy as the second
        assert std[0] == std[1]
        assert (std[1:].diff() < 0).all()


def test_learned_noise_starts_half_way_and_stays_between_its_bounds():
    torch.manual_seed(0)
    noise = LearnedNoise(6, 3, 2, min_std=0.02, max_std=0.5)
    condition, t = torch.randn(5, 6), torch.rand(5)
    std = noise.std(condition, t, 0.25)
    torch.testing.assert_close(std, torch.full((5, 3, 2), 0.1))
    for scale in (1.0, 1e4):
        torch.nn.init.normal_(noise.out.weight, std=scale)
        std = noise.std(condition, t, 0.25)
        assert std.std() > 0
        tolerance = 1e-6  # of exp(log(25)) in float32
        assert std.min() >= 0.02 * (1 - tolerance)
        assert std.max() <= 0.5 * (1 + tolerance)
    assert noise.mean(torch.ones(1), torch.full((1,), 2.0), t, 0.25).item() == 1.5


def test_learned_noise_reads_the_observation_and_the_time():
    noise = LearnedNoise(6, 3, 2)
    torch.nn.init.normal_(noise.out.weight)
    condition, t = torch.randn(2, 6), torch.tensor([0.0, 1.0])
    same, other = condition[:1].expand(2, 6), torch.zeros(2)
    assert not torch.equal(*noise.std(same, t, 0.25))
    assert not torch.equal(*noise.std(condition, other, 0.25))
    assert torch.equal(*noise.std(same, other, 0.25))


def test_impossible_scales_are_refused():
    with pytest.raises(
        ValueError, match=r"FlowSDENoise: .* positive scale, got 0.*None"
    ):
        FlowSDENoise(0)
    with pytest.raises(ValueError, match=r"0 < min_std <= max_std, got min_std=0.3"):
        LearnedNoise(1, 1, 1, min_std=0.3, max_std=0.2)


@pytest.mark.parametrize("noise", [FlowSDENoise(0.7), LearnedNoise(5, 2, 3, hidden=4)])
def test_noise_comes_back_from_its_folder(tmp_path, noise):
    for parameter in noise.parameters():
        torch.nn.init.normal_(parameter)
    write_noise(tmp_path / "new", noise)
    again = read_noise(tmp_path / "new")
    assert repr(again) == repr(noise)
    condition, t = torch.randn(4, 5), torch.rand(4)
    assert torch.equal(again.std(condition, t, 0.5), noise.std(condition, t, 0.5))
    write_noise(tmp_path / "new", None)
    assert read_noise(tmp_path / "new") is None


def test_noise_of_an_unknown_class_is_not_written(tmp_path):
    class Mine(FlowSDENoise):
        pass

    with pytest.raises(
        ValueError, match=r"expected one of \['FlowSDENoise', .* a Mine"
    ):
        write_noise(tmp_path, Mine())
