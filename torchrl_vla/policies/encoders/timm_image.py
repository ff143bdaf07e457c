"""Image encoders of ``timm``, which has torchvision's networks and weights too."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import Self

from torchrl_vla.policies.encoders.image_features import (
    ImageEncoder,
    ImageFeatures,
    as_features,
)
from torchrl_vla.policies.encoders.image_input import ImageInput, Resize
from torchrl_vla.schema import SchemaError, import_extra


class TimmImageEncoder(ImageEncoder):
    """Encode images by the last feature map of a ``timm`` network, e.g. ``resnet18``.

    The constructor makes random weights; :meth:`from_pretrained` downloads or reads
    those that ``timm`` knows, with the size and normalization that belong to them.

    Args:
        name: of ``timm.list_models()``, with an optional tag such as ``.tv_in1k``.
        image_input: size and normalization of the images that it takes.

    Keyword Args:
        frozen: True = the weights are not trained.

    Raises:
        MissingExtraError: ``timm`` is not installed.

    Source: https://huggingface.co/docs/timm/feature_extraction
    """

    def __init__(
        self, name: str, image_input: ImageInput, *, frozen: bool = True
    ) -> None:
        timm = import_extra("timm", "timm", type(self).__name__)
        options = {"features_only": True, "out_indices": (-1,)}
        model = timm.create_model(name, pretrained=False, **options)
        super().__init__(model.feature_info.channels()[-1], image_input, frozen=frozen)
        self.name = name
        self.model = model
        self.freeze()

    @property
    def config(self) -> dict[str, object]:
        """The constructor's arguments."""
        return {
            "name": self.name,
            "image_input": self.image_input,
            "frozen": self.frozen,
        }

    @classmethod
    def from_pretrained(
        cls, name: str, *, resize: Resize = "refuse", frozen: bool = True
    ) -> Self:
        """Make the encoder with ``timm``'s weights of that name, from the Hub or cache.

        Raises:
            MissingExtraError: ``timm`` is not installed.
        """
        timm = import_extra("timm", "timm", cls.__name__)
        options = {"features_only": True, "out_indices": (-1,)}
        model = timm.create_model(name, pretrained=True, **options)
        data = timm.data.resolve_model_data_config(model)
        mean, std = tuple(data["mean"]), tuple(data["std"])
        image_input = ImageInput(tuple(data["input_size"][1:]), mean, std, resize)
        encoder = cls(name, image_input, frozen=frozen)
        encoder.model.load_state_dict(model.state_dict())
        return encoder

    def encode_pixels(self, pixels: Tensor) -> ImageFeatures:
        """Return the last feature map as patches."""
        (feature_map,) = self.model(pixels)
        if feature_map.ndim != 4 or feature_map.shape[1] != self.num_features:
            raise SchemaError(
                f"TimmImageEncoder: expected a feature map [N, {self.num_features}, "
                f"rows, columns] of {self.name!r}, got {list(feature_map.shape)}. Take "
                "a network whose features are channels first, e.g. a ResNet or ViT."
            )
        return as_features(feature_map)
