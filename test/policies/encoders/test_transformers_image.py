from __future__ import annotations

import pytest
import torch
from encoder_folders import write_language_model, write_vision_model

from torchrl_vla.policies import TransformersImageEncoder
from torchrl_vla.schema import SchemaError

pytest.importorskip("transformers")

IMAGES = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)


def read(folder, **options) -> TransformersImageEncoder:
    return TransformersImageEncoder.from_pretrained(str(folder), **options)


def test_patches_are_the_states_that_transformers_gives(tmp_path):
    import transformers

    folder = write_vision_model(tmp_path / "model")
    features = read(folder).encode(IMAGES)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    mean, std = torch.tensor([[0.5, 0.25, 0.0], [0.5, 0.25, 1.0]]).view(2, 1, 3, 1, 1)
    with torch.no_grad():
        states = model(pixel_values=(IMAGES / 255 - mean) / std).last_hidden_state
    torch.testing.assert_close(features.patches, states[:, 1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(features.pooled, states[:, 0], atol=1e-5, rtol=0)
    assert features.grid == (2, 2)


@pytest.mark.parametrize("kind", ["dinov2", "resnet", "clip", "siglip"])
def test_vision_models_and_vision_parts_are_read(tmp_path, kind):
    encoder = read(write_vision_model(tmp_path / "model", kind))
    features = encoder.encode(IMAGES)
    rows, columns = features.grid
    assert features.patches.shape == (2, rows * columns, encoder.num_features)
    assert features.pooled.shape == (2, encoder.num_pooled)
    again = TransformersImageEncoder(**encoder.config)
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again.encode(IMAGES).patches, features.patches)


def test_another_size_is_refused_and_resized_on_request(tmp_path):
    folder = write_vision_model(tmp_path / "model")
    with pytest.raises(SchemaError, match=r"\(h, w\) = \(16, 16\), got \(8, 8\)"):
        read(folder).encode(IMAGES[..., :8, :8])
    assert read(folder, resize="pad").encode(IMAGES[..., :8, :8]).grid == (2, 2)


def test_a_processor_of_another_size_than_the_model_is_refused(tmp_path):
    folder = write_vision_model(tmp_path / "model", size=24)
    with pytest.raises(SchemaError, match=r"size of the model, 16, .*got \(24, 24\)"):
        read(folder)


def test_a_folder_without_a_processor_is_refused(tmp_path):
    folder = write_vision_model(tmp_path / "model", processor=False)
    with pytest.raises(SchemaError, match=r"vision model with preprocessor_config"):
        read(folder)


def test_a_language_model_is_no_image_encoder(tmp_path):
    folder = write_language_model(tmp_path / "model")
    with pytest.raises(SchemaError, match=r"BertModel, which reads 'input_ids'"):
        read(folder)


def test_a_name_that_is_no_folder_is_never_downloaded():
    with pytest.raises(FileNotFoundError, match="'siglip'"):
        read("siglip")
