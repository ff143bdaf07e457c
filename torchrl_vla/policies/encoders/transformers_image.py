"""Image encoders of ``transformers``, by folder or repo id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor
from typing_extensions import Self

from torchrl_vla.policies.encoders.image_features import (
    ImageEncoder,
    ImageFeatures,
    as_features,
)
from torchrl_vla.policies.encoders.image_input import ImageInput, Resize
from torchrl_vla.policies.encoders.text_models import check_folder, load_weights_of
from torchrl_vla.schema import SchemaError, import_extra
from torchrl_vla.schema.lerobot_names import is_repo_id

_PROCESSOR = "preprocessor_config.json"


class TransformersImageEncoder(ImageEncoder):
    """Encode images by a vision model of ``transformers``: ViT, DINOv2, SigLIP, ResNet.

    The constructor makes random weights from a configuration, without reading a file,
    so that a policy with this encoder loads from its own folder.
    :meth:`from_pretrained` reads the weights, and size and normalization from the image
    processor's file.

    Args:
        architecture: the model's configuration, with ``model_type``.
        image_input: size and normalization of the images that it takes.

    Keyword Args:
        frozen: True = the weights are not trained.

    Raises:
        MissingExtraError: ``transformers`` is not installed.
        SchemaError: the configuration is of a model that reads no images.
    """

    def __init__(
        self,
        architecture: dict[str, Any],
        image_input: ImageInput,
        *,
        frozen: bool = True,
    ) -> None:
        caller = type(self).__name__
        transformers = import_extra("transformers", "vlm", caller)
        config = transformers.AutoConfig.for_model(**architecture)
        model = transformers.AutoModel.from_config(config)
        _check_reads_images(caller, model)
        sizes = vars(config).get("hidden_sizes")  # of a convolutional network
        width = sizes[-1] if sizes else config.hidden_size
        super().__init__(width, image_input, frozen=frozen)
        self.architecture = architecture
        self.model = model
        self.freeze()

    @property
    def config(self) -> dict[str, object]:
        """The constructor's arguments."""
        return {
            "architecture": self.architecture,
            "image_input": self.image_input,
            "frozen": self.frozen,
        }

    @classmethod
    def from_pretrained(
        cls, source: str, *, resize: Resize = "refuse", frozen: bool = True
    ) -> Self:
        """Read a vision model, or the vision part of a CLIP-like one.

        Nothing is downloaded unless the source is a repo id.

        Args:
            source: folder of ``save_pretrained``, or a repo id.

        Keyword Args:
            resize: what happens to images of another size.
            frozen: True = the weights are not trained.

        Raises:
            MissingExtraError: ``transformers`` is not installed.
            FileNotFoundError: there is no such folder.
            SchemaError: there is no image processor, the model reads no images, its
                size is another than the processor's, or weights of it are missing.
        """
        caller = cls.__name__
        transformers = import_extra("transformers", "vlm", caller)
        folder = Path(source).expanduser()
        if folder.is_dir():
            check_folder(caller, folder, "vision")
        elif not is_repo_id(source):
            raise FileNotFoundError(
                f"{caller}: expected a folder of transformers or a repo id "
                f"'owner/name', got {source!r}. There is no such folder."
            )
        where = str(folder) if folder.is_dir() else source
        options = {"local_files_only": folder.is_dir()}
        config = transformers.AutoConfig.from_pretrained(where, **options)
        config = vars(config).get("vision_config", config)
        model = transformers.AutoModel.from_config(config)
        _check_reads_images(caller, model)
        if folder.is_dir():
            check_folder(caller, folder, "vision", (_PROCESSOR,))
        processor, _ = (
            transformers.image_processing_utils.BaseImageProcessor
        ).get_image_processor_dict(where, **options)
        image_input = _image_input(processor, resize)
        side = vars(config).get("image_size")
        if side is not None and image_input.size not in ((side, side), side):
            raise SchemaError(
                f"{caller}: expected the image size of the model, {side}, in "
                f"{_PROCESSOR!r} of {source!r}, got {image_input.size}. The position "
                "embeddings would not fit: correct the size in the file."
            )
        architecture = json.loads(config.to_json_string(use_diff=False))
        encoder = cls(architecture, image_input, frozen=frozen)
        loaded = load_weights_of(caller, type(model), where, options)
        encoder.model.load_state_dict(loaded.state_dict())
        return encoder

    def encode_pixels(self, pixels: Tensor) -> ImageFeatures:
        """Return the last states of the patches; pooled is the class token, if any."""
        states = self.model(pixel_values=pixels).last_hidden_state
        if states.ndim == 4:
            return as_features(states)
        patch = self.model.config.patch_size
        grid = (pixels.shape[-2] // patch, pixels.shape[-1] // patch)
        special = states.shape[1] - grid[0] * grid[1]  # class token and registers first
        patches = states[:, special:]
        return ImageFeatures(
            patches, states[:, 0] if special else patches.mean(1), grid
        )


def _check_reads_images(caller: str, model: Any) -> None:
    if model.main_input_name != "pixel_values":
        raise SchemaError(
            f"{caller}: expected a vision model, got a {type(model).__name__}, which "
            f"reads {model.main_input_name!r}. It is a text encoder: pass it as "
            "--text-encoder (text_encoder=)."
        )


def _image_input(processor: dict[str, Any], resize: Resize) -> ImageInput:
    """Return the preparation that an image processor's file describes."""
    size = processor.get("crop_size") or processor.get("size")
    match size:
        case {"height": int(height), "width": int(width)}:
            sides = (height, width)
        case {"shortest_edge": int(side)} | int(side):
            sides = (side, side)
        case _:
            raise SchemaError(
                f"TransformersImageEncoder: expected a size in {_PROCESSOR!r}, got "
                f"{size!r}. Give height and width."
            )
    half = [0.5] * 3
    mean, std = processor.get("image_mean", half), processor.get("image_std", half)
    return ImageInput(sides, tuple(mean), tuple(std), resize)
