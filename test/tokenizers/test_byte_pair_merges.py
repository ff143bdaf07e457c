import itertools
import json

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrl_vla.tokenizers.byte_pair_merges import BytePairMerges, merges_of


def naive(merges, symbols):
    """The pair of the lowest rank, the leftmost of equals, until none merges."""
    rank = {(first, second): (k, new) for k, (first, second, new) in enumerate(merges)}
    row = list(symbols)
    while pairs := [
        (rank[pair][0], place)
        for place, pair in enumerate(itertools.pairwise(row))
        if pair in rank
    ]:
        _, place = min(pairs)
        row[place : place + 2] = [rank[row[place], row[place + 1]][1]]
    return row


@st.composite
def vocabularies(draw):
    """Merges of any two tokens that exist, and sequences of three symbols."""
    merges, size = [], 3
    for _ in range(draw(st.integers(1, 12))):
        pair = draw(st.tuples(st.integers(0, size - 1), st.integers(0, size - 1)))
        if pair not in [merge[:2] for merge in merges]:
            merges.append((*pair, size))
            size += 1
    length = draw(st.integers(1, 20))
    row = st.lists(st.integers(0, 2), min_size=length, max_size=length)
    return merges, size, draw(st.lists(row, min_size=1, max_size=4))


@settings(max_examples=300, deadline=None)
@given(vocabularies())
def test_the_result_is_that_of_merging_one_pair_after_another(drawn):
    merges, size, rows = drawn
    tokens, counts = BytePairMerges(merges, size)(torch.tensor(rows))
    found = [part.tolist() for part in tokens.split(counts.tolist())]
    assert found == [naive(merges, row) for row in rows]


def test_merges_are_read_as_pairs_and_as_text():
    vocabulary = {"a": 0, "b": 1, "ab": 2}
    for merge in (["a", "b"], "a b"):
        model = json.loads(json.dumps({"merges": [merge]}))
        assert merges_of(model, vocabulary) == [(0, 1, 2)]
