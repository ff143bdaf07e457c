"""The condition is whatever a policy encodes."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torch.distributions import Normal

from torchrl_vla.policies import FlowSDENoise, FlowVLAWrapper
from torchrl_vla.schema import SchemaError
from torchrl_vla.testing import check_policy

H, A, D, K = 3, 2, 4, 3


class Attending(FlowVLAWrapper):
    """Attend to a sequence with a mask; move two numbers more than are sampled."""

    path_dim = D

    judges_steps_together = False

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(
            action_dim=A, chunk_size=H, num_steps=K, noise=FlowSDENoise(0.5)
        )
        self.in_keys = ["tokens", "mask"]
        self.read, self.write = nn.Linear(D + 1, 5), nn.Linear(5, D)

    def encode(self, tensordict):
        n = tensordict.batch_size.numel()
        return tensordict.select("tokens", "mask").reshape(n)

    def features(self, condition):
        return condition["tokens"].mean(1)

    def velocity(self, condition, x, t):
        query = self.read(torch.cat([x, t[:, None, None].expand(-1, H, 1)], -1))
        score = (query[:, :, None] * condition["tokens"][:, None]).sum(-1)
        score = score.masked_fill(~condition["mask"][:, None], -torch.inf)
        seen = (score.softmax(-1)[..., None] * condition["tokens"][:, None]).sum(2)
        return self.write(seen + query)


def batch(n=4):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(n, 6, 5, generator=generator)
    mask = torch.arange(6) < torch.arange(2, 2 + n)[:, None]
    return TensorDict({"tokens": tokens, "mask": mask}, [n])


def test_a_sequence_with_a_mask_keeps_the_contract_of_every_policy():
    check_policy(Attending(), batch(), ratio_tolerance=1e-5)


def test_log_probabilities_are_those_of_a_naive_loop():
    policy, data = Attending(), batch()
    with torch.no_grad():
        dist = policy.get_dist(data)
        paths = dist.sample((2,))
        expected = torch.zeros(2, 4, H, A)
        for draw in range(2):
            x = paths[draw, :, 0]
            for k in range(K):
                t = torch.full((4,), k / K)
                v, s = policy.velocity(dist._condition, x, t), max(k / K, 1 / K)
                variance = 0.25 * (1 - s) / s
                mean = x + (v - variance / (2 * (1 - k / K)) * (x - k / K * v)) / K
                drawn = paths[draw, :, k + 1, :, :A]
                normal = Normal(mean[..., :A], (variance / K) ** 0.5)
                expected[draw] += normal.log_prob(drawn)
                x = torch.cat([drawn, (x + v / K)[..., A:]], -1)
        torch.testing.assert_close(dist.element_log_probs(paths), expected)
    assert paths.shape == (2, 4, K + 1, H, D)


def test_what_is_not_sampled_is_read_at_the_first_step_only():
    policy, data = Attending(), batch()
    with torch.no_grad():
        dist = policy.get_dist(data)
        path = dist.sample()
        before = dist.element_log_probs(path)
        path[:, 1:, :, A:] = torch.nan
        assert torch.equal(dist.element_log_probs(path), before)
        path[:, 0, :, A:] += 1
        assert not torch.equal(dist.element_log_probs(path), before)


def test_a_condition_is_repeated_for_several_times_per_frame():
    policy, data = Attending(), batch()
    policy.path_dim = A
    policy.read, policy.write = nn.Linear(A + 1, 5), nn.Linear(5, A)
    data["action_chunk"] = torch.randn(4, H, A)
    torch.manual_seed(3)
    errors = policy.denoising_errors(data, num_samples=3)
    torch.manual_seed(3)
    repeated = policy.denoising_errors(torch.cat([data] * 3))
    torch.testing.assert_close(errors, repeated.unflatten(0, (3, 4)).mean(0))


def test_a_condition_without_features_says_what_is_missing():
    policy = Attending()
    policy.features = lambda condition: condition["tokens"]
    with pytest.raises(SchemaError, match=r"let\s+features\(condition\) return"):
        policy(batch())


def test_judged_together_or_in_turn_a_path_is_as_likely():
    policy, data = Attending(), batch()
    policy.path_dim = A
    policy.read, policy.write = nn.Linear(A + 1, 5), nn.Linear(5, A)
    with torch.no_grad():
        dist = policy.get_dist(data)
        paths = dist.sample((2,))
        in_turn = dist.element_log_probs(paths)
        policy.judges_steps_together = True
        together = policy.get_dist(data).element_log_probs(paths)
    torch.testing.assert_close(in_turn, together)
