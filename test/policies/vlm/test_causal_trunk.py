from __future__ import annotations

import pytest
import torch
from tiny_vlms import tiny_trunk


@pytest.mark.parametrize(("device", "expected"), [("cpu", 8), ("meta", 3)])
def test_images_are_filled_up_to_whole_blocks_on_the_cpu_alone(device, expected):
    trunk = tiny_trunk("causal").to(device)
    seen = []
    encode = trunk.image_encoder.encode_pixels
    trunk.image_encoder.encode_pixels = lambda x: (seen.append(len(x)), encode(x))[1]
    images = torch.zeros(3, 3, 16, 16, dtype=torch.uint8, device=device)
    assert trunk._see(images).shape == (3, 4, trunk.hidden_size)
    assert seen == [expected]
