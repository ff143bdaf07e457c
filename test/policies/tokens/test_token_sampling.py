from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrl_vla.policies import TokenSampling


def naive_kept(logits, top_k, top_p):
    """Rank one row's tokens by probability and take them until it is enough."""
    weights = [math.exp(x) for x in logits]
    ranked = sorted(range(len(logits)), key=lambda i: -weights[i])
    if top_k is not None:
        ranked = ranked[:top_k]
    total, share, kept = sum(weights[i] for i in ranked), 0.0, set()
    for i in ranked:
        if top_p is not None and share >= top_p:
            break
        kept.add(i)
        share += weights[i] / total
    return [i in kept for i in range(len(logits))]


@given(
    v=st.integers(1, 8),
    top_k=st.none() | st.integers(1, 9),
    top_p=st.none() | st.floats(0.05, 1.0),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=80, deadline=None)
def test_the_kept_tokens_are_those_of_counting(v, top_k, top_p, seed):
    generator = torch.Generator().manual_seed(seed)
    # Distinct logits in double precision: neither ties nor rounding at the border.
    logits = 2 * torch.randn(3, v, generator=generator, dtype=torch.float64)
    kept = TokenSampling(top_k=top_k, top_p=top_p).kept(logits)
    assert kept.tolist() == [naive_kept(row, top_k, top_p) for row in logits.tolist()]


def test_what_reaches_top_p_exactly_is_enough():
    logits = torch.tensor([0.5, 0.25, 0.25]).log()
    assert TokenSampling(top_p=0.5).kept(logits).tolist() == [True, False, False]
    assert TokenSampling(top_p=0.51).kept(logits).tolist() == [True, True, True]


def test_ties_with_the_last_kept_token_stay():
    logits = torch.tensor([1.0, 3.0, 1.0, 0.0])
    assert TokenSampling(top_k=2).kept(logits).tolist() == [True, True, True, False]


def test_top_p_is_a_share_of_what_top_k_left():
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    # Of 0.4 and 0.3 the first is 57 %.
    kept = TokenSampling(top_k=2, top_p=0.55).kept(logits)
    assert kept.tolist() == [True, False, False, False]
    assert TokenSampling(top_p=0.55).kept(logits).tolist() == [True, True, False, False]


def test_a_token_that_may_not_be_drawn_is_never_kept():
    logits = torch.tensor([-math.inf, 1.0, 0.0])
    for sampling in (TokenSampling(top_k=3), TokenSampling(top_p=0.999)):
        assert sampling.kept(logits).tolist() == [False, True, True]


def test_only_top_k_and_top_p_truncate():
    assert not TokenSampling(temperature=0.5).truncates
    assert not TokenSampling(top_p=1.0).truncates
    assert TokenSampling(top_k=3).truncates
    assert TokenSampling(top_p=0.9).truncates


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"temperature": 0.0}, r"finite temperature above 0, got 0\.0\. For the most"),
        ({"temperature": -1.0}, r"finite temperature above 0, got -1\.0"),
        ({"temperature": math.inf}, r"finite temperature above 0, got inf"),
        ({"temperature": math.nan}, r"finite temperature above 0, got nan"),
        ({"top_k": 0}, r"positive int at argument 'top_k', got 0"),
        ({"top_k": 2.0}, r"positive int at argument 'top_k', got 2\.0"),
        ({"top_p": 0.0}, r"top_p in \(0, 1\] or None, got 0\.0"),
        ({"top_p": 1.1}, r"top_p in \(0, 1\] or None, got 1\.1"),
    ],
)
def test_values_out_of_range_are_refused(argument, message):
    with pytest.raises(ValueError, match=rf"^TokenSampling: expected (a )?{message}"):
        TokenSampling(**argument)
