import json
import pickle
import sys

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from action_chunks import published_folder, smooth_chunks, walk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dct, idct
from tokenizers import Tokenizer

from torchrl_vla.errors import MissingExtraError, TokenError
from torchrl_vla.tokenizers import FASTActionTokenizer, tokenizer_from_config

CHUNKS = smooth_chunks(300)


@pytest.fixture(scope="module")
def fitted():
    return FASTActionTokenizer.fit(CHUNKS, vocab_size=200)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    # Coefficients lie on both sides of code 128, so that characters of two bytes occur.
    folder = published_folder(tmp_path_factory.mktemp("fast"), CHUNKS, low=-128)
    return FASTActionTokenizer.from_folder(folder)


@pytest.fixture(params=["fitted", "published"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


def naive_tokens(tokenizer, chunk):
    """One chunk by scipy, text and the library, as the published processor does it."""
    found = np.around(
        dct(chunk.double().numpy(), axis=0, norm="ortho") * tokenizer.scale
    )
    text = "".join(map(chr, (found.flatten() - tokenizer.min_token).astype(int)))
    return Tokenizer.from_str(tokenizer.bpe).encode(text).ids


def naive_chunk(tokenizer, ids):
    stored = json.loads(tokenizer.bpe)["model"]["vocab"]
    text = Tokenizer.from_str(tokenizer.bpe).decode(ids, skip_special_tokens=False)
    assert max(ids) < len(stored)
    found = np.array([ord(char) for char in text]) + tokenizer.min_token
    found = found.reshape(tokenizer.chunk_size, tokenizer.action_dim)
    return idct(found / tokenizer.scale, axis=0, norm="ortho")


def test_tokens_and_chunks_are_those_of_a_naive_reference(tokenizer):
    chunks = CHUNKS[:40]
    tokens = tokenizer.encode(chunks)
    decoded = tokenizer.decode(tokens)
    for chunk, row, back in zip(chunks, tokens, decoded, strict=True):
        ids = row[tokenizer.is_token(row)].tolist()
        assert ids == naive_tokens(tokenizer, chunk)
        torch.testing.assert_close(
            back, torch.from_numpy(naive_chunk(tokenizer, ids)).float()
        )
    assert tokenizer.is_token(tokens).sum(-1).float().mean() < 12  # of 16 numbers


@settings(max_examples=40, deadline=None)
@given(
    arrays.arrays(np.float32, (3, 8, 2), elements=st.floats(-1, 1, width=32)),
)
def test_any_chunk_is_encoded_as_the_reference_does_and_decodes(
    fitted, published, chunk
):
    chunks = torch.from_numpy(chunk)
    for tokenizer in (fitted, published):
        tokens = tokenizer.encode(chunks)
        back = tokenizer.decode(tokens)
        assert torch.equal(tokens, tokenizer.encode(back))
        wanted = tokenizer.coefficients(chunks) - tokenizer.min_token
        if (wanted < len(tokenizer.nearest)).all() and (wanted >= 0).all():
            exact = (tokenizer.nearest[wanted] == wanted).flatten(1).all(-1)
            for row in exact.nonzero().flatten().tolist():
                ids = tokens[row][tokenizer.is_token(tokens[row])].tolist()
                assert ids == naive_tokens(tokenizer, chunks[row])


def test_the_error_is_at_most_half_a_level_in_each_coefficient(fitted):
    error = fitted.decode(fitted.encode(CHUNKS)) - CHUNKS
    # The transform is orthonormal: 8 coefficients, each off by at most 0.5 / scale.
    assert error.norm(dim=1).max() <= 0.05 * 8**0.5 + 1e-6
    assert error.abs().max() > 0.01  # something was rounded


def test_2000_random_sequences_of_the_grammar_decode(tokenizer):
    tokens = walk(tokenizer.make_grammar(), 2000)
    chunks = tokenizer.decode(tokens)
    assert chunks.shape == (2000, 8, 2)
    assert chunks.isfinite().all()
    assert (tokenizer.is_token(tokens).sum(-1).unique().numel()) > 3  # many lengths
    assert torch.equal(tokens == tokenizer.end_token, ~tokenizer.is_token(tokens))


def test_unfinished_characters_are_part_of_the_published_grammar(published):
    tokens = walk(published.make_grammar(), 200)
    tail = published.vocabulary.tail
    assert (tail[tokens[published.is_token(tokens)]] > 0).any()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ((3, 9999), "at position 3 of row 1, got 9999"),
        ((3, -1), "at position 3 of row 1, got -1"),
        ((0, "end"), "at position 0 of row 1"),
        ((-1, 0), r"expected one of the tokens \d+ at position 15 of row 1, got 0"),
    ],
)
def test_a_foreign_sequence_raises_with_the_position(fitted, change, match):
    tokens = fitted.encode(CHUNKS[:3])
    place, token = change
    tokens[1, place] = fitted.end_token if token == "end" else token
    with pytest.raises(TokenError, match=match):
        fitted.decode(tokens)


def test_a_sequence_that_is_cut_off_raises(fitted):
    with pytest.raises(TokenError, match=r"\[\.\.\., 16\], got \[2, 5\]"):
        fitted.decode(fitted.encode(CHUNKS[:2])[:, :5])
    tokens = fitted.vocabulary.token_of_code[torch.zeros(1, 16, dtype=torch.int64)]
    tokens[:, -1] = fitted.end_token  # 15 of 16 numbers
    with pytest.raises(TokenError, match="at position 15 of row 0"):
        fitted.decode(tokens)


def test_half_a_character_raises(published):
    grammar = published.make_grammar()
    tokens = walk(grammar, 200)
    row, place = (published.vocabulary.tail[tokens.clamp_max(399)] > 0).nonzero()[0]
    tokens[row, place + 1] = published.vocabulary.token_of_code[10]  # no second half
    with pytest.raises(TokenError, match=f"position {place + 1} of row {row}"):
        published.decode(tokens)


def test_numbers_beyond_the_vocabulary_become_the_nearest(fitted):
    far = torch.full((1, 8, 2), 50.0)
    decoded = fitted.decode(fitted.encode(far))
    highest = fitted.min_token + len(fitted.nearest) - 1
    # Only the constant is not 0: its coefficient is 50 * sqrt(8).
    torch.testing.assert_close(decoded, torch.full_like(far, highest / 10 / 8**0.5))


@pytest.mark.parametrize("save", ["folder", "config", "pickle"])
def test_saved_and_loaded_it_is_the_same(tokenizer, save, tmp_path):
    if save == "folder":
        tokenizer.to_folder(tmp_path)
        again = FASTActionTokenizer.from_folder(tmp_path)
    elif save == "config":
        again = tokenizer_from_config(json.loads(json.dumps(tokenizer.to_config())))
    else:
        tokenizer.encode(CHUNKS[:1])
        again = pickle.loads(pickle.dumps(tokenizer))
    tokens = tokenizer.encode(CHUNKS)
    assert torch.equal(again.encode(CHUNKS), tokens)
    assert torch.equal(again.decode(tokens), tokenizer.decode(tokens))


def test_what_it_writes_is_read_by_the_published_kind_of_processor(fitted, tmp_path):
    from transformers import PreTrainedTokenizerFast

    fitted.to_folder(tmp_path)
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    row = fitted.encode(CHUNKS[:1])[0]
    ids = row[fitted.is_token(row)].tolist()
    found = fitted.coefficients(CHUNKS[0]).flatten() - fitted.min_token
    text = "".join(map(chr, found.tolist()))
    assert theirs(text)["input_ids"] == ids
    assert theirs.decode(ids, clean_up_tokenization_spaces=False) == text


def test_open_sizes_of_a_published_folder_are_arguments(tmp_path):
    published_folder(tmp_path, CHUNKS, sizes=False)
    with pytest.raises(TokenError, match="expected chunk_size, got neither"):
        FASTActionTokenizer.from_folder(tmp_path)
    made = FASTActionTokenizer.from_folder(tmp_path, chunk_size=8, action_dim=2)
    assert made.encode(CHUNKS[:2]).shape == (2, 32)  # two bytes for a number at most


def test_a_folder_with_the_tokenizer_in_a_folder_of_its_own_is_read(tmp_path):
    published_folder(tmp_path, CHUNKS)
    (tmp_path / "bpe_tokenizer").mkdir()
    (tmp_path / "tokenizer.json").rename(tmp_path / "bpe_tokenizer" / "tokenizer.json")
    assert FASTActionTokenizer.from_folder(tmp_path).chunk_size == 8


def test_what_is_wrong_with_a_folder_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected processor_config.json and"):
        FASTActionTokenizer.from_folder(tmp_path)
    published_folder(tmp_path, CHUNKS)
    with pytest.raises(TokenError, match=r"chunk_size=8 \('time_horizon'.*got 9"):
        FASTActionTokenizer.from_folder(tmp_path, chunk_size=9)
    path = tmp_path / "processor_config.json"
    path.write_text(path.read_text().replace('"vocab_size": 400', '"vocab_size": 300'))
    with pytest.raises(TokenError, match=r"at most 300 tokens .* got 400"):
        FASTActionTokenizer.from_folder(tmp_path)
    path.write_text("{}")
    with pytest.raises(TokenError, match="numbers at 'min_token' and 'scale'"):
        FASTActionTokenizer.from_folder(tmp_path)


def test_arguments_out_of_range_are_refused(fitted):
    with pytest.raises(ValueError, match="finite scale above 0, got 0"):
        FASTActionTokenizer(
            fitted.bpe, chunk_size=8, action_dim=2, min_token=0, scale=0
        )
    with pytest.raises(TokenError, match=r"text of a tokenizer.json"):
        FASTActionTokenizer("no json", chunk_size=8, action_dim=2, min_token=0)
    with pytest.raises(TokenError, match="at most 20 different coefficients"):
        FASTActionTokenizer.fit(CHUNKS, vocab_size=20)
    with pytest.raises(TokenError, match=r"\[\.\.\., 8, 2\], got \[3, 7, 2\]"):
        fitted.encode(torch.zeros(3, 7, 2))
    with pytest.raises(TokenError, match="finite actions, got nan"):
        fitted.encode(torch.full((1, 8, 2), torch.nan))


def test_chunks_may_come_one_by_one():
    one = FASTActionTokenizer.fit(iter(CHUNKS), vocab_size=200)
    assert one.bpe == FASTActionTokenizer.fit(CHUNKS, vocab_size=200).bpe


def test_a_policy_in_bfloat16_does_not_round_it(fitted):
    tokens = fitted.encode(CHUNKS)
    expected = fitted.decode(tokens)
    half = tokenizer_from_config(fitted.to_config()).bfloat16()
    assert torch.equal(half.encode(CHUNKS), tokens)
    assert torch.equal(half.decode(tokens), expected)


def test_without_the_library_fitting_names_the_extra_and_a_fitted_one_works(
    fitted, monkeypatch
):
    tokens = fitted.encode(CHUNKS)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtraError, match=r"torchrl-vla\[vlm\]"):
        FASTActionTokenizer.fit(CHUNKS)
    again = tokenizer_from_config(fitted.to_config())
    assert torch.equal(again.encode(CHUNKS), tokens)
    assert torch.equal(again.decode(tokens), fitted.decode(tokens))
