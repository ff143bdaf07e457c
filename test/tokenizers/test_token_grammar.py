import pytest
import torch
from action_chunks import walk

from torchrl_vla.errors import TokenError
from torchrl_vla.tokenizers import FASTGrammar, PositionGrammar


class Vocabulary:
    """Tokens of 2, 3 and 5 coefficients: 1 and 4 + ... cannot all be filled."""

    size = 3
    counts = torch.tensor([2, 3, 5])
    head = torch.tensor([-1, -1, -1])
    tail = torch.tensor([0, 0, 0])


def test_a_token_is_allowed_if_the_rest_can_be_filled():
    grammar = FASTGrammar(Vocabulary(), numbers=6, length=3)
    state = grammar.start(1)
    # 6 = 2+2+2 = 3+3; after 5, a single one would be left, which no token fills.
    assert grammar.allowed(state).tolist() == [[True, True, False, False]]
    state = grammar.advance(state, torch.tensor([0]))  # 4 = 2+2 left
    assert grammar.allowed(state).tolist() == [[True, False, False, False]]
    state = grammar.advance(
        grammar.advance(state, torch.tensor([0])), torch.tensor([0])
    )
    assert grammar.allowed(state).tolist() == [[False, False, False, True]]  # the end
    assert grammar.is_end(state).all()


def test_what_can_be_filled_equals_a_search_through_all_sequences():
    grammar = FASTGrammar(Vocabulary(), numbers=11, length=5)

    def fills(missing):
        return missing == 0 or any(
            fills(missing - n) for n in (2, 3, 5) if n <= missing
        )

    for missing in range(1, 12):
        allowed = grammar.allowed(torch.tensor([missing]))[0, :3].tolist()
        expected = [n <= missing and fills(missing - n) for n in (2, 3, 5)]
        assert allowed == expected


def test_numbers_that_no_tokens_add_up_to_are_refused():
    with pytest.raises(TokenError, match="add up to 1 coefficients"):
        FASTGrammar(Vocabulary(), numbers=1, length=1)


def test_the_masks_along_a_sequence_are_those_of_its_steps():
    grammar = FASTGrammar(Vocabulary(), numbers=11, length=5)
    tokens = walk(grammar, 50)
    masks = grammar.allowed_along(tokens)
    assert masks.gather(-1, tokens.unsqueeze(-1)).all()
    state = grammar.start(50)
    for place in range(5):
        assert torch.equal(masks[:, place], grammar.allowed(state))
        state = grammar.advance(state, tokens[:, place])


def test_positions_have_sets_of_their_own():
    grammar = PositionGrammar(torch.tensor([[True, False, True], [False, True, False]]))
    tokens = walk(grammar, 100)
    assert tokens[:, 0].unique().tolist() == [0, 2]
    assert (tokens[:, 1] == 1).all()
    grammar.check(tokens)
    tokens[7, 1] = 2
    with pytest.raises(
        TokenError, match="one of the tokens 1 at position 1 of row 7, g"
    ):
        grammar.check(tokens)
    with pytest.raises(TokenError, match="ends within 1 tokens, got one that does not"):
        grammar.check(tokens[:, :1])
    with pytest.raises(TokenError, match="got none at position 0"):
        PositionGrammar(torch.zeros(1, 3, dtype=torch.bool))
