from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrl_vla.policies import TokenDistribution
from torchrl_vla.schema import SchemaError, TokenError


@given(
    n=st.integers(1, 3),
    h=st.integers(1, 3),
    a=st.integers(1, 3),
    v=st.integers(1, 5),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_log_prob_is_the_naive_sum(n, h, a, v, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, h, a, v, generator=generator, dtype=torch.float64)
    tokens = torch.randint(v, (n, h, a), generator=generator)
    expected = torch.zeros(n, dtype=torch.float64)
    for i in range(n):
        for j in range(h):
            for k in range(a):
                weights = [math.exp(x) for x in logits[i, j, k].tolist()]
                expected[i] += math.log(weights[tokens[i, j, k]] / sum(weights))
    torch.testing.assert_close(TokenDistribution(logits).log_prob(tokens), expected)


def test_each_token_has_its_own_probability():
    logits = torch.tensor([1.0, 3.0]).log().reshape(1, 1, 1, 2)
    dist = TokenDistribution(logits)
    for token, probability in ((0, 0.25), (1, 0.75)):
        got = dist.token_log_probs(torch.full((1, 1, 1), token)).exp()
        torch.testing.assert_close(got, torch.full((1, 1, 1), probability))


def test_the_mode_is_the_most_likely_token():
    logits = torch.tensor([[0.0, 2.0, 1.0], [5.0, -1.0, 0.0]]).reshape(1, 2, 1, 3)
    assert TokenDistribution(logits).mode.tolist() == [[[1], [0]]]


def test_entropy_is_that_of_the_whole_chunk():
    entropy = TokenDistribution(torch.zeros(5, 2, 3, 4)).entropy()
    # Six independent tokens of four equally likely values.
    torch.testing.assert_close(entropy, torch.full((5,), 6 * math.log(4)))


def test_a_certain_token_is_always_drawn():
    logits = torch.full((10, 2, 1, 3), -1e9)
    logits[..., 2] = 0.0
    assert (TokenDistribution(logits).sample() == 2).all()


def test_the_gradient_is_the_indicator_minus_the_probability():
    logits = torch.tensor([1.0, 2.0, 5.0]).log().reshape(1, 1, 1, 3).requires_grad_()
    TokenDistribution(logits).log_prob(torch.tensor([[[1]]])).sum().backward()
    expected = torch.tensor([-1 / 8, 1 - 2 / 8, -5 / 8])
    torch.testing.assert_close(logits.grad.flatten(), expected)


@pytest.mark.parametrize("shape", [(3, 2), (5, 3, 2), (1, 3, 2), (5, 3)])
def test_tokens_are_never_broadcast(shape):
    dist = TokenDistribution(torch.zeros(5, 2, 3, 4))
    with pytest.raises(
        SchemaError,
        match=r"^TokenDistribution: expected int64 tokens \[5, 2, 3\], got torch.int64 "
        r"\[.*\]\. Tokens are \[\*B, H, A\], one per action dimension of each step\.$",
    ):
        dist.log_prob(torch.zeros(shape, dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.bool])
def test_tokens_are_int64(dtype):
    dist = TokenDistribution(torch.zeros(5, 2, 3, 4))
    with pytest.raises(SchemaError, match=rf"got {dtype} \[5, 2, 3\]"):
        dist.log_prob(torch.zeros(5, 2, 3, dtype=dtype))


@pytest.mark.parametrize("foreign", [-1, 4, 31999])
def test_a_foreign_token_is_refused(foreign):
    tokens = torch.zeros(5, 2, 3, dtype=torch.int64)
    tokens[2, 1, 0] = foreign
    low, high = sorted((0, foreign))
    with pytest.raises(
        TokenError,
        match=rf"expected tokens in \[0, 4\), got values from {low} to {high}\. They "
        "come from another tokenizer",
    ):
        TokenDistribution(torch.zeros(5, 2, 3, 4)).token_log_probs(tokens)
