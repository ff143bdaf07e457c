"""A tiny image encoder of the users'."""

from torch import nn

from torchrl_vla.policies.encoders.image_features import ImageEncoder, as_features
from torchrl_vla.policies.encoders.image_input import ImageInput


class PatchEncoder(ImageEncoder):
    """One convolution over patches of 8 x 8."""

    def __init__(self, width: int = 12):
        super().__init__(width, ImageInput(size=(16, 16)))
        self.width = width
        self.patches = nn.Conv2d(3, width, 8, stride=8)

    def encode_pixels(self, pixels):
        return as_features(self.patches(pixels))
