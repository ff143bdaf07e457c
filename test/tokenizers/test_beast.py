import json

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from action_chunks import smooth_chunks, walk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import BSpline

from torchrl_vla.errors import TokenError
from torchrl_vla.tokenizers import BEASTActionTokenizer, tokenizer_from_config
from torchrl_vla.tokenizers.beast import spline_basis

CHUNKS = smooth_chunks(200, size=12, width=3)


@pytest.fixture(scope="module")
def tokenizer():
    return BEASTActionTokenizer.fit(CHUNKS, num_basis=6)


def scipy_basis(size, num_basis, degree):
    inner = np.linspace(0, 1, num_basis - degree + 1)
    knots = np.concatenate([np.zeros(degree), inner, np.ones(degree)])
    steps = np.linspace(0, 1, size)
    return BSpline.design_matrix(steps, knots, degree).toarray()


@pytest.mark.parametrize("degree", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("num_basis", [5, 8])
def test_the_basis_is_scipy_s(degree, num_basis):
    ours = spline_basis(13, num_basis, degree).numpy()
    np.testing.assert_allclose(ours, scipy_basis(13, num_basis, degree), atol=1e-12)


def test_reconstruction_is_that_of_a_naive_reference(tokenizer):
    basis = scipy_basis(12, 6, 3)
    low, high = tokenizer.low.numpy(), tokenizer.high.numpy()
    tokens = tokenizer.encode(CHUNKS[:20])
    for chunk, row, back in zip(CHUNKS, tokens, tokenizer.decode(tokens), strict=False):
        points = np.linalg.lstsq(basis, chunk.double().numpy(), rcond=None)[0]
        levels = np.around((points - low) / (high - low) * 255).clip(0, 255)
        assert levels.astype(int).flatten().tolist() == row.tolist()
        expected = basis @ (low + levels / 255 * (high - low))
        np.testing.assert_allclose(back.numpy(), expected, atol=1e-6)


def test_a_spline_is_reproduced_to_half_a_level(tokenizer):
    points = tokenizer.low + torch.rand(10, 6, 3) * (tokenizer.high - tokenizer.low)
    chunks = tokenizer.basis @ points
    back = tokenizer.decode(tokenizer.encode(chunks))
    # A spline lies within its control points, so it is off by no more than they are.
    half = (tokenizer.high - tokenizer.low) / 255 / 2
    assert ((back - chunks).abs() <= half + 1e-6).all()


@settings(max_examples=30, deadline=None)
@given(arrays.arrays(np.float32, (2, 12, 3), elements=st.floats(-9, 9, width=32)))
def test_encode_undoes_decode_for_any_chunk(tokenizer, chunks):
    tokens = tokenizer.encode(torch.from_numpy(chunks))
    assert torch.equal(tokenizer.encode(tokenizer.decode(tokens)), tokens)


def test_2000_random_sequences_of_the_grammar_decode(tokenizer):
    tokens = walk(tokenizer.make_grammar(), 2000)
    assert tokens.shape == (2000, 18)
    assert tokens.max() == 255
    assert tokens.min() == 0
    assert tokenizer.decode(tokens).isfinite().all()


def test_a_foreign_token_raises_with_the_position(tokenizer):
    tokens = tokenizer.encode(CHUNKS[:2])
    tokens[1, 4] = 256
    with pytest.raises(TokenError, match=r"in \[0, 256\), got 256 at index \[1, 4\]"):
        tokenizer.decode(tokens)
    with pytest.raises(TokenError, match=r"\[\.\.\., 18\], got \[2, 17\]"):
        tokenizer.decode(tokens[:, :17])


def test_a_token_moves_no_step_before_the_first_of_its_support(tokenizer):
    tokens = torch.full((1, 18), 100)
    still = tokenizer.decode(tokens)
    for place, first in enumerate(tokenizer.first_steps.tolist()):
        other = tokens.clone()
        other[0, place] = 200
        moved = (tokenizer.decode(other) != still)[0].any(-1).nonzero().flatten()
        assert moved[0] == first
    assert tokenizer.first_steps.tolist() == sorted(tokenizer.first_steps.tolist())


def test_a_dimension_that_never_moves_is_kept():
    chunks = CHUNKS.clone()
    chunks[..., 1] = 0.25
    still = BEASTActionTokenizer.fit(chunks, num_basis=4)
    back = still.decode(still.encode(chunks))[..., 1]
    assert (back - 0.25).abs().max() <= 0.5 / 255 + 1e-6  # half a level of 1


def test_the_config_rebuilds_it(tokenizer):
    again = tokenizer_from_config(json.loads(json.dumps(tokenizer.to_config())))
    assert torch.equal(again.encode(CHUNKS), tokenizer.encode(CHUNKS))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            {"num_basis": 13},
            "degree \\+ 1 <= num_basis <= chunk_size, got degree=3, nu",
        ),
        ({"num_basis": 3}, "got degree=3, num_basis=3, chunk_size=12"),
        ({"degree": -1}, "degree >= 0"),
        ({"num_bins": 1}, "num_bins >= 2, got 1"),
        ({"low": [1.0], "high": [1.0]}, "finite low < high"),
        ({"low": [0.0, 0.0]}, r"one shape \[A\], got \[2\] and \[1\]"),
    ],
)
def test_arguments_out_of_range_are_refused(change, match):
    options = {"chunk_size": 12, "num_basis": 6, "low": [-1.0], "high": [1.0]}
    with pytest.raises(ValueError, match=match):
        BEASTActionTokenizer(**options | change)


def test_a_policy_in_bfloat16_does_not_round_it(tokenizer):
    tokens = tokenizer.encode(CHUNKS)
    expected = tokenizer.decode(tokens)
    half = tokenizer_from_config(tokenizer.to_config()).bfloat16()
    assert torch.equal(half.encode(CHUNKS), tokens)
    assert torch.equal(half.decode(tokens), expected)
