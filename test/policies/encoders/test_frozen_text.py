from __future__ import annotations

import copy

import pytest
import torch
from encoder_folders import write_language_model

from torchrl_vla.policies import FrozenTextEncoder, TextFeature
from torchrl_vla.policies.encoders import frozen_text
from torchrl_vla.schema import UnknownInstructionError

pytest.importorskip("transformers")

TEXTS = ("reach the red block", "reach the green block", "touch the blue one")


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    return str(write_language_model(tmp_path / "model"))


@pytest.fixture
def count_models(monkeypatch):
    loaded = []
    load = frozen_text.load_language_model

    def counting(caller, source):
        loaded.append(source)
        return load(caller, source)

    monkeypatch.setattr(frozen_text, "load_language_model", counting)
    return loaded


def encoder_of(*features) -> FrozenTextEncoder:
    torch.manual_seed(0)
    encoder = FrozenTextEncoder(features, dim=4)
    encoder.expect(TEXTS)
    return encoder


def test_features_are_the_states_that_transformers_gives(folder):
    import transformers

    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer("go to the red block", return_tensors="pt")
    with torch.no_grad():
        states = model(**tokens, output_hidden_states=True).hidden_states
    expected = {
        ("mean", -1, 0): states[-1][0].mean(0),
        ("mean", 1, 2): states[1][0, 2:].mean(0),
        ("last", 0, 0): states[0][0, -1],
    }
    for (pooling, layer, skip), vector in expected.items():
        feature = TextFeature(folder, 16, layer, pooling, "go to {}", skip)
        row = encoder_of(feature).compute_rows(["the red block"])
        torch.testing.assert_close(row[0], vector / vector.norm())


def test_rows_are_centred_on_the_first_table_and_models_weigh_alike(folder, tmp_path):
    other = str(write_language_model(tmp_path / "other", causal=True))
    features = [TextFeature(folder, 16), TextFeature(folder, 16, layer=1)]
    encoder = encoder_of(*features, TextFeature(other, 16))
    rows = encoder.prepare(TEXTS)
    torch.testing.assert_close(rows.mean(0), torch.zeros(48), atol=1e-5, rtol=0)
    lengths = [part.norm(dim=-1).mean().item() for part in rows.split(16, -1)]
    # 48 numbers: each model has half of the squared length, in two parts or in one.
    assert lengths == pytest.approx([12**0.5, 12**0.5, 24**0.5], rel=1e-4)
    encoder.expect(["go to red"])  # a later table moves nothing
    assert torch.equal(encoder.prepare(TEXTS), rows)


def test_a_row_does_not_depend_on_the_texts_beside_it(folder):
    rows = encoder_of(TextFeature(folder, 16)).prepare(TEXTS)
    for text, row in zip(TEXTS, rows):
        assert torch.equal(encoder_of(TextFeature(folder, 16)).prepare([text])[0], row)


def test_the_model_runs_once_per_text_and_its_features_are_cached(folder, count_models):
    encoder = encoder_of(TextFeature(folder, 16))
    encoder.prepare(TEXTS)
    encoder.prepare(TEXTS)
    assert count_models == [folder]
    again = encoder_of(TextFeature(folder, 16))
    assert torch.equal(again.prepare(TEXTS), encoder.prepare(TEXTS))
    assert count_models == [folder]  # from the user's cache
    again.prepare(["go to red"])
    assert count_models == [folder, folder]


def test_copies_share_the_rows(folder, count_models):
    encoder = encoder_of(TextFeature(folder, 16))
    copied = copy.deepcopy(encoder)
    copied.prepare(TEXTS)
    encoder.prepare(TEXTS)
    assert count_models == [folder]


def test_a_stored_encoder_knows_its_texts_without_the_model(folder, count_models):
    encoder = encoder_of(TextFeature(folder, 16))
    weights = encoder.state_dict()  # texts that were expected are in it
    del count_models[:]
    loaded = encoder_of(TextFeature("no such folder", 16))
    loaded.load_state_dict(weights)
    assert torch.equal(loaded.encode(TEXTS), encoder.encode(TEXTS))
    assert count_models == []


def test_an_encoder_without_a_table_says_how_to_set_it(folder):
    encoder = FrozenTextEncoder((TextFeature(folder, 16),), dim=4)
    with pytest.raises(UnknownInstructionError, match=r"policy\.instructions ="):
        encoder.prepare(["red"])


def test_a_new_text_without_the_model_is_an_error_with_the_remedy(folder):
    loaded = encoder_of(TextFeature("no such folder", 16))
    with pytest.raises(FileNotFoundError, match="no such folder"):
        loaded.prepare(TEXTS)  # none is known: the argument is wrong
    loaded.load_state_dict(encoder_of(TextFeature(folder, 16)).state_dict())
    with pytest.raises(
        UnknownInstructionError,
        match=r"one of the 3 texts .* got 'touch red'\. Give it a known instruction",
    ):
        loaded.prepare(["touch red"])


def test_weights_without_the_rows_are_refused(folder):
    encoder = encoder_of(TextFeature(folder, 16))
    weights = encoder.state_dict()
    del weights["known_rows"]
    with pytest.raises(RuntimeError, match="known_ids"):
        encoder_of(TextFeature(folder, 16)).load_state_dict(weights)


def test_only_the_linear_layer_is_trained(folder):
    names = [name for name, _ in encoder_of(TextFeature(folder, 16)).named_parameters()]
    assert names == ["out.weight", "out.bias", "norm.weight", "norm.bias"]


def test_a_prompt_needs_a_place_for_the_text():
    with pytest.raises(ValueError, match=r"expected '\{\}' in the prompt"):
        TextFeature("minilm", 384, prompt="the color is")


def test_an_encoder_needs_a_feature():
    with pytest.raises(ValueError, match="at least one TextFeature"):
        FrozenTextEncoder(())
