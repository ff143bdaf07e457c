import pytest
import torch
from action_chunks import smooth_chunks

from torchrl_vla.errors import TokenError
from torchrl_vla.tokenizers import (
    BEASTActionTokenizer,
    FASTActionTokenizer,
    UniformActionTokenizer,
    tokenizer_report,
)

CHUNKS = smooth_chunks(100)


def test_bins_are_reported_as_worked_out_by_hand():
    bins = UniformActionTokenizer(2, low=-1.0, high=1.0)  # middles -0.5 and 0.5
    chunks = torch.tensor([[[0.5, 0.0], [1.0, 0.5]], [[0.5, 0.5], [0.5, 0.5]]])
    report = tokenizer_report(bins, chunks)
    assert report.tokens == (4.0, 4.0, 4.0)
    assert report.longest == 4
    assert report.compression == 1.0
    # Means of the chunks: 0.25 and 0 in both dimensions.
    assert report.error == (0.125, 0.125)
    assert report.largest == (0.5, 0.5)
    half = 1.959964 * (0.25 / 2**0.5) / 2**0.5
    assert report.error_high == pytest.approx((0.125 + half,) * 2, abs=1e-6)
    assert report.error_low == (0.0, 0.0)  # an error is not negative


@pytest.mark.parametrize("kind", ["fast", "beast"])
def test_chunk_tokenizers_are_reported_as_a_loop_over_chunks_has_it(kind):
    if kind == "fast":
        tokenizer = FASTActionTokenizer.fit(CHUNKS, vocab_size=200)
    else:
        tokenizer = BEASTActionTokenizer.fit(CHUNKS, num_basis=4)
    lengths, errors = [], []
    for chunk in CHUNKS:
        tokens = tokenizer.encode(chunk)
        lengths.append(int((tokens != (tokenizer.end_token or -1)).sum()))
        errors.append((tokenizer.decode(tokens) - chunk).abs())
    report = tokenizer_report(tokenizer, CHUNKS)
    assert report.tokens[0] == pytest.approx(sum(lengths) / 100)
    assert report.longest == max(lengths)
    assert report.compression == pytest.approx(16 / (sum(lengths) / 100))
    mean = torch.stack(errors).mean((0, 1))
    assert report.error == pytest.approx(mean.tolist(), rel=1e-4)
    assert all(
        low < mean < high
        for low, mean, high in zip(
            report.error_low, report.error, report.error_high, strict=True
        )
    )


def test_the_table_has_a_line_for_each_dimension():
    bins = UniformActionTokenizer(4, low=-1.0, high=1.0)
    table = str(tokenizer_report(bins, CHUNKS))
    assert table.splitlines()[0] == "UniformActionTokenizer on 100 chunks of 16 numbers"
    assert "compression 1.00" in table
    assert len(table.splitlines()) == 3 + 2


def test_chunks_of_several_shapes_are_refused():
    bins = UniformActionTokenizer(4, low=-1.0, high=1.0)
    with pytest.raises(TokenError, match=r"one shape \[H, A\] at argument 'chunks'"):
        tokenizer_report(bins, [torch.zeros(2, 1), torch.zeros(3, 1)])
