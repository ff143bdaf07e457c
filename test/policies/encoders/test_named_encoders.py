from __future__ import annotations

import pytest
from encoder_folders import write_language_model

from torchrl_vla.policies import (
    TEXT_ENCODERS,
    make_image_encoder,
    make_text_encoder,
    prompted_smollm2,
)


def test_names_give_their_features_side_by_side():
    widths = {name: sum(f.width for f in x) for name, x in TEXT_ENCODERS.items()}
    assert widths == {"minilm": 384, "smollm2": 2304, "minilm+smollm2": 2688}
    both = make_text_encoder("minilm+smollm2", dim=8)
    assert [f.model for f in both.features] == ["minilm"] + ["smollm2"] * 4
    assert both.num_features == 8


def test_prompts_are_the_users():
    plain, asked = prompted_smollm2(("{} What is meant? The",))
    assert (plain.pooling, plain.skip, plain.layer) == ("mean", 1, 8)
    assert asked.prompt.endswith("{} What is meant? The")
    assert (asked.pooling, asked.layer) == ("last", 28)


def test_a_decoders_first_token_is_left_out_of_the_mean(tmp_path):
    pytest.importorskip("transformers")
    (encoder,) = make_text_encoder(str(write_language_model(tmp_path / "a"))).features
    assert (encoder.prompt, encoder.skip, encoder.width) == ("{}", 0, 16)
    folder = write_language_model(tmp_path / "b", causal=True)
    (decoder,) = make_text_encoder(str(folder)).features
    assert (decoder.prompt, decoder.skip) == ("[EOS]{}", 1)


def test_efficientnet_goes_by_its_name():
    pytest.importorskip("efficientnet_lite_pytorch")
    encoder = make_image_encoder("efficientnet-lite0", resize="pad")
    assert encoder.image_input.size == (224, 224)
    assert encoder.frozen
