"""Pixels of TorchRL's preprocessor, whose JPEG codec is torchvision's."""

from __future__ import annotations

import pytest
import torch
from torchrl.data.vla import OpenVLAImagePreprocessor

from torchrl_vla.transforms import OpenVLAImages


@pytest.mark.parametrize("center_crop", [True, False])
def test_the_pixels_are_those_of_torchrls_preprocessor(center_crop):
    pytest.importorskip("torchvision")  # LeRobot brings it
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand((2, 3, 256, 256), generator=generator) * 80
    image = (noise + torch.linspace(0, 170, 256)).to(torch.uint8)
    theirs = OpenVLAImagePreprocessor(size=112, center_crop=center_crop)(image)
    ours = OpenVLAImages(112, center_crop=center_crop).convert_image(image)
    difference = (ours.int() - theirs.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 1e-3
