from __future__ import annotations

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.envs import TransformedEnv, check_env_specs

from torchrl_vla.envs import ToyVLAEnv
from torchrl_vla.schema import MissingKeyError, SchemaError
from torchrl_vla.testing import check_transform
from torchrl_vla.transforms import OpenVLAImages, ResizeWithPad


def random_image(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, shape, generator=generator).to(torch.uint8)


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (30, 31), (10, 200)])
def test_the_content_is_pillows_resized_image_in_the_middle(size):
    pillow = pytest.importorskip("PIL.Image")
    image = random_image(3, *size)
    padded = ResizeWithPad(32, 32).convert_image(image)
    ratio = max(size) / 32
    height, width = int(size[0] / ratio), int(size[1] / ratio)
    expected = pillow.fromarray(image.permute(1, 2, 0).numpy()).resize(
        (width, height), pillow.BILINEAR
    )
    top, left = (32 - height) // 2, (32 - width) // 2
    content = padded[:, top : top + height, left : left + width]
    difference = content.permute(1, 2, 0).int() - torch.from_numpy(
        np.asarray(expected).astype(np.int32)
    )
    assert difference.abs().max() <= 1
    assert padded.sum() == content.sum()  # the borders are black


def test_without_padding_undoes_it_where_nothing_is_resized():
    resize, image = ResizeWithPad(8, 8), random_image(2, 3, 5, 8)
    padded = resize.convert_image(image)
    assert padded.shape == (2, 3, 8, 8)
    assert torch.equal(padded[..., 1:6, :], image)
    assert torch.equal(resize.without_padding(padded, (5, 8)), image)


def test_float_images_stay_float_and_in_their_range():
    padded = ResizeWithPad(5, 7).convert_image(torch.ones(1, 3, 20, 20))
    assert padded.shape == (1, 3, 5, 7)
    assert padded.unique().tolist() == [0.0, 1.0]


def test_the_transform_keeps_its_contract_for_one_image_and_for_cameras():
    for image in (
        random_image(2, 3, 6, 8),
        {"top": random_image(2, 3, 6, 8), "wrist": random_image(2, 3, 4, 4)},
    ):
        data = TensorDict({"observation": {"image": image}}, [2])
        keys = list(data.keys(True, True))
        check_transform(ResizeWithPad(4, 4), data, reads=keys, writes=keys)


def test_images_of_next_have_the_same_size():
    image = {"image": random_image(2, 3, 6, 8)}
    data = TensorDict({"observation": image, "next": {"observation": image}}, [2])
    data = ResizeWithPad(4, 4)(data)
    assert data["next", "observation", "image"].shape == (2, 3, 4, 4)


def test_an_environment_says_the_new_size():
    env = TransformedEnv(ToyVLAEnv(2, 2, batch_size=[2], seed=0), ResizeWithPad(10, 20))
    check_env_specs(env)
    assert env.rollout(2)["observation", "image"].shape == (2, 2, 3, 10, 20)


def test_an_empty_batch_stays_one():
    empty = torch.zeros(0, 3, 6, 8, dtype=torch.uint8)
    assert ResizeWithPad(4, 4).convert_image(empty).shape == (0, 3, 4, 4)
    assert OpenVLAImages(4).convert_image(empty).shape == (0, 3, 4, 4)


def test_what_is_no_image_raises():
    with pytest.raises(MissingKeyError, match=r"expected an image at .*'image'"):
        ResizeWithPad(4, 4)(TensorDict({"action": torch.zeros(1, 2)}, [1]))
    with pytest.raises(SchemaError, match=r"expected uint8 or float images.*int64"):
        ResizeWithPad(4, 4).convert_image(torch.zeros(3, 8, 8, dtype=torch.int64))
    with pytest.raises(SchemaError, match=r"got \(3, 0, 8\) of torch.uint8"):
        ResizeWithPad(4, 4).convert_image(torch.zeros(3, 0, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"height and a width of at least 1, got \(0"):
        ResizeWithPad(0, 4)
