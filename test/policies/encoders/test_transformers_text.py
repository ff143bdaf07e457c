from __future__ import annotations

import pytest
import torch
from encoder_folders import write_language_model

from torchrl_vla.policies import TransformersTextEncoder
from torchrl_vla.schema import SchemaError, UnknownInstructionError

pytest.importorskip("transformers")

TEXTS = ["reach the red block", "go to the blue one now"]


@pytest.fixture
def folder(tmp_path):
    return str(write_language_model(tmp_path / "model"))


def make(folder, **options) -> TransformersTextEncoder:
    torch.manual_seed(0)
    return TransformersTextEncoder.from_pretrained(
        folder, 4, max_tokens=6, **options
    ).eval()


def test_the_encoding_is_the_projected_mean_of_the_states(folder):
    import transformers

    encoder = make(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for text, encoding in zip(TEXTS, encoder.encode(TEXTS)):
        states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        expected = encoder.norm(encoder.out(states.mean(0)))
        torch.testing.assert_close(encoding, expected, atol=1e-5, rtol=0)


def test_token_states_have_a_mask(folder):
    encoder = make(folder)
    tokens = encoder.encode_tokens(encoder.prepare(TEXTS))
    assert tokens.states.shape == (2, 6, 16)
    assert tokens.is_pad.sum(1).tolist() == [2, 0]


def test_all_weights_are_trained_or_only_the_projection(folder):
    for frozen in (False, True):
        encoder = make(folder, frozen=frozen).train()
        encoder.encode(TEXTS).sum().backward()
        inside = [p.grad is not None for p in encoder.model.encoder.parameters()]
        assert all(inside) if not frozen else not any(inside)
        assert encoder.out.weight.grad is not None
        assert encoder.model.training != frozen


def test_a_longer_text_is_refused(folder):
    with pytest.raises(SchemaError, match=r"max_tokens=6 tokens, got 7 of"):
        make(folder).prepare(["go to the red block the red"])


def test_a_stored_encoder_knows_its_texts_without_the_tokenizer(folder):
    encoder = make(folder)
    encoder.expect(TEXTS)
    loaded = TransformersTextEncoder(encoder.architecture, "gone", 4, max_tokens=6)
    loaded.load_state_dict(encoder.state_dict())
    assert torch.equal(loaded.eval().encode(TEXTS), encoder.encode(TEXTS))
    with pytest.raises(UnknownInstructionError, match=r"2 texts .*'touch red'.*'gone'"):
        loaded.prepare(["touch red"])
