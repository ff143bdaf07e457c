from __future__ import annotations

import pytest
import torch
from torch import nn

from torchrl_vla.data import collect, reword_demonstrations
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.errors import SettingsError
from torchrl_vla.policies import ImageEncoder, ImageInput, as_features
from torchrl_vla.recipes import (
    TrainingSettings,
    encode_images,
    make_policy,
    train_behavior_cloning,
)
from torchrl_vla.schema import SchemaError, Wordings


class Convolution(ImageEncoder):
    """A frozen random network that counts its images."""

    def __init__(self, mean: float = 0.5, frozen: bool = True):
        super().__init__(4, ImageInput(mean=(mean,) * 3), frozen=frozen)
        self.mean = mean
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 4, 4, stride=4)
        self.count = 0
        self.freeze()

    def encode_pixels(self, pixels):
        self.count += len(pixels)
        return as_features(self.layer(pixels))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    env = TabletopEnv(4, image_size=16, seed=0)
    folder = tmp_path_factory.mktemp("data") / "demos"
    return collect(env, env.make_expert(), 6, folder=folder, progress=False)


def trained(dataset, encoder, features=None):
    torch.manual_seed(1)
    policy = make_policy(dataset, chunk_size=2, hidden=16, image_encoder=encoder)
    settings = TrainingSettings(steps=3, batch_size=8)
    data = dataset if features is None else features
    train_behavior_cloning(policy, data, settings, progress=False)
    return policy


def test_each_image_is_encoded_once_and_the_training_is_the_same(dataset, tmp_path):
    encoder = Convolution()
    encoded = encode_images(dataset, encoder, tmp_path / "features", batch_size=7)
    assert encoder.count == len(dataset)
    on_features, on_images = (
        trained(dataset, encoder, encoded),
        trained(dataset, encoder),
    )
    assert on_features.backbone.vision.count == encoder.count  # copied, never called
    assert on_images.backbone.vision.count > encoder.count
    for name, weight in on_images.state_dict().items():
        got = on_features.state_dict()[name]
        torch.testing.assert_close(got, weight, atol=1e-5, rtol=1e-4)


def test_the_folder_is_read_the_second_time(dataset, tmp_path):
    first = encode_images(dataset, Convolution(), tmp_path)
    encoder = Convolution()
    second = encode_images(dataset, encoder, tmp_path)
    assert encoder.count == 0
    key = ("observation", "image_features")
    assert torch.equal(second.frames[key], first.frames[key])
    assert first.frames[key].shape == (len(dataset), 4, 4, 4)


@pytest.mark.parametrize("what", ["weights", "encoder and preparation", "frames"])
def test_features_of_another_encoder_or_dataset_are_refused(dataset, tmp_path, what):
    encode_images(dataset, Convolution(), tmp_path)
    encoder, other = Convolution(), dataset
    if what == "weights":
        encoder.layer.weight.data[0, 0, 0, 0] += 1
    elif what == "frames":
        other = dataset.select_episodes(dataset.episodes[:3])
    else:
        encoder = Convolution(mean=0.4)
    with pytest.raises(SchemaError, match=rf"with another {what}\. Delete the folder"):
        encode_images(other, encoder, tmp_path)


def test_a_trained_encoder_is_refused(dataset, tmp_path):
    with pytest.raises(SettingsError, match="frozen encoder"):
        encode_images(dataset, Convolution(frozen=False), tmp_path)
    encoded = encode_images(dataset, Convolution(), tmp_path)
    with pytest.raises(SchemaError, match="without encode_images"):
        trained(dataset, Convolution(frozen=False), encoded)


def test_a_part_keeps_its_features_and_wordings_go_with_them(dataset, tmp_path):
    encoded = encode_images(dataset, Convolution(), tmp_path)
    wordings = Wordings({text: [text.upper()] for text in dataset.instructions})
    part = reword_demonstrations(
        encoded.select_episodes(dataset.episodes[2:3]), wordings
    )
    frame = part.replay_buffer(1, seed=0).sample()[0]
    expected = Convolution().encode(frame["observation", "image"][None]).patches
    got = frame["observation", "image_features"].flatten(0, 1)
    torch.testing.assert_close(got, expected[0])
