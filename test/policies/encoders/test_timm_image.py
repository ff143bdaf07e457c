"""The adapter of timm, on a stand-in with timm's interface: timm is not installed."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from torchrl_vla.policies import make_image_encoder
from torchrl_vla.schema import SchemaError

IMAGES = torch.randint(0, 256, (2, 3, 8, 12), dtype=torch.uint8)


class Network(nn.Module):
    """As ``timm.create_model(..., features_only=True)`` returns: a list of maps."""

    def __init__(self, pretrained: bool) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 5, 4, stride=4)
        nn.init.constant_(self.layer.weight, float(pretrained))
        self.feature_info = SimpleNamespace(channels=lambda: [5])
        self.channels_last = False

    def forward(self, pixels):
        x = self.layer(pixels)
        return [x.movedim(1, -1) if self.channels_last else x]


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    made = []

    def create_model(name, *, pretrained, features_only, out_indices):
        made.append((name, pretrained, features_only, out_indices))
        return Network(pretrained)

    module = ModuleType("timm")
    module.create_model = create_model
    values = {"input_size": (3, 8, 12), "mean": (0.5, 0.4, 0.3), "std": (0.1, 0.2, 0.3)}
    module.data = SimpleNamespace(resolve_model_data_config=lambda model: values)
    monkeypatch.setitem(sys.modules, "timm", module)
    return made


def test_the_last_map_of_the_pretrained_network_is_read_as_timm_prepares_it(calls):
    encoder = make_image_encoder("timm:resnet18.tv_in1k")
    assert ("resnet18.tv_in1k", True, True, (-1,)) in calls
    features = encoder.encode(IMAGES)
    assert features.grid == (2, 3)
    mean, std = torch.tensor([[0.5, 0.4, 0.3], [0.1, 0.2, 0.3]]).view(2, 1, 3, 1, 1)
    block = ((IMAGES / 255 - mean) / std)[0, :, :4, :4].sum()  # all weights are 1
    expected = block + encoder.model.layer.bias
    torch.testing.assert_close(features.patches[0, 0], expected, atol=1e-4, rtol=1e-4)


def test_it_is_built_again_without_downloading(calls):
    encoder = make_image_encoder("timm:resnet18", frozen=False)
    del calls[:]
    again = type(encoder)(**encoder.config)
    assert [pretrained for _, pretrained, *_ in calls] == [False]
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again.encode(IMAGES).pooled, encoder.encode(IMAGES).pooled)


def test_channels_last_are_refused():
    encoder = make_image_encoder("timm:swin")
    encoder.model.channels_last = True
    with pytest.raises(SchemaError, match=r"\[N, 5, .*'swin', got \[2, 2, 3, 5\]"):
        encoder.encode(IMAGES)
