from __future__ import annotations

import torch
from torch import nn

from torchrl_vla.policies import KeypointImageEncoder
from torchrl_vla.policies.encoders.image_features import ImageEncoder, as_features
from torchrl_vla.policies.encoders.image_input import ImageInput


class Linear(ImageEncoder):
    def __init__(self, frozen=False):
        super().__init__(2, ImageInput(), frozen=frozen)
        self.layer = nn.Conv2d(3, 2, 1)
        self.dropout = nn.Dropout(0.5)
        self.freeze()

    def encode_pixels(self, pixels):
        return as_features(self.dropout(self.layer(pixels)))


def test_patches_are_row_by_row_and_pooled_is_their_mean():
    feature_map = torch.arange(12.0).reshape(1, 2, 2, 3)
    features = as_features(feature_map)
    assert features.grid == (2, 3)
    assert torch.equal(features.patches[0, :, 0], torch.arange(6.0))
    assert features.pooled.tolist() == [[2.5, 8.5]]


def test_a_frozen_encoder_has_no_gradient_and_stays_in_evaluation_mode():
    encoder = Linear(frozen=True).train()
    image = torch.ones(1, 3, 2, 2)
    first, second = encoder.encode(image), encoder.encode(image)
    assert torch.equal(first.patches, second.patches)  # no dropout
    assert not first.pooled.requires_grad
    assert not any(p.requires_grad for p in encoder.parameters())


def test_a_trainable_encoder_has_gradients_in_training_mode():
    encoder = Linear().train()
    encoder.encode(torch.ones(1, 3, 2, 2)).pooled.sum().backward()
    assert encoder.training
    assert encoder.layer.weight.grad is not None


def test_the_tiny_encoder_is_one_and_gives_a_feature_per_four_pixels():
    encoder = KeypointImageEncoder(text_dim=4, width=8)
    image = torch.randint(0, 256, (2, 3, 12, 16), dtype=torch.uint8)
    features = encoder.encode(image)
    assert features.grid == (3, 4)
    assert features.patches.shape == (2, 12, encoder.num_features)
    assert features.pooled.shape == (2, encoder.num_pooled)
    torch.testing.assert_close(
        features.patches, encoder.encode(image / 255).patches, atol=1e-5, rtol=0
    )
