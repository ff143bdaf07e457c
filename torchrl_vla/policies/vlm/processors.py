"""Processors of vision-language models, and what differs between their families."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from torchrl_vla.schema import SchemaError

# Objects of transformers, which is imported where one of them is made.
Model = Any
Part = Any


@dataclass(frozen=True)
class Family:
    """Facts about a family of models that their common interface does not tell.

    Args:
        image_text: stands for an image in a prompt; None = the processor's own token.
        first_position: position of the first token.
        sees_ahead: tokens of the prompt that see later ones too: none, those of the
            same image, or all of the prompt.
        has_grid_positions: True = image tokens are placed in time, height and width.
    """

    image_text: str | None = None
    first_position: int = 0
    sees_ahead: Literal["none", "images", "prompt"] = "none"
    has_grid_positions: bool = False


_QWEN = Family("<|vision_start|><|image_pad|><|vision_end|>", has_grid_positions=True)
FAMILIES = {
    "paligemma": Family(first_position=1, sees_ahead="prompt"),
    "gemma3": Family("<start_of_image>", sees_ahead="images"),
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN,
}


def family_of(model_type: str) -> Family:
    """Return the facts about a ``model_type`` of ``transformers``."""
    return FAMILIES.get(model_type, Family())


class PromptProcessor:
    """Turn text and images into a model's inputs with its own processor.

    Args:
        processor: of ``transformers``, for text and images, or a tokenizer alone.
        tokenizer: its tokenizer.
        image_processor: its part for images; None = it takes none.
        family: facts about the model.
    """

    def __init__(
        self,
        processor: Part,
        tokenizer: Part,
        image_processor: Part | None,
        family: Family,
    ) -> None:
        self.processor, self.tokenizer = processor, tokenizer
        self.image_processor, self.family = image_processor, family

    def __deepcopy__(self, memo: dict) -> PromptProcessor:
        """Return itself: losses copy their policy, and nothing here changes."""
        return self

    def encode_text(self, text: str, images: list[Tensor]) -> dict[str, Tensor]:
        """Return the entries ``[L]`` of a prompt that do not depend on the pixels.

        Args:
            text: the prompt.
            images: uint8 ``[C, h, w]`` of the sizes that will come.
        """
        if not images:
            found = self.tokenizer([text])
        else:
            text = self._image_text * len(images) + text
            try:
                found = self.processor(text=[text], images=[images])
            except (ValueError, TypeError, IndexError, RuntimeError) as error:
                sizes = [tuple(image.shape) for image in images]
                raise SchemaError(
                    f"TransformersVLA: expected a processor that takes {len(images)} "
                    f"images of (C, h, w) {sizes} per prompt, got an error of "
                    f"{type(self.processor).__name__}: {error}. Read fewer cameras or "
                    "other sizes (TrunkConfig), or take a model for several images."
                ) from error
        return {
            name: torch.as_tensor(value[0], dtype=torch.int64)
            for name, value in found.items()
            if name in _OF_TEXT
        }

    def encode_images(self, images: list[list[Tensor]]) -> dict[str, Tensor]:
        """Return the entries of the pixels, for ``N`` lists of images."""
        if self.image_processor is None:
            return {}
        found = self.image_processor(images=images, return_tensors="pt")
        return {name: found[name] for name in _OF_PIXELS if name in found}

    def save_pretrained(self, folder: Path) -> None:
        """Write tokenizer and processor as ``transformers`` does."""
        self.processor.save_pretrained(folder)

    @property
    def _image_text(self) -> str:
        text = self.family.image_text
        return self.processor.image_token if text is None else text


class GridProcessor:
    """Processor of Qwen's vision-language models for text and images.

    The one of ``transformers`` asks for torchvision, for videos, which no policy of
    ours reads.

    Args:
        image_processor: with ``merge_size``; writes ``image_grid_thw``.
        tokenizer: knows ``<|image_pad|>``.
    """

    image_token = "<|image_pad|>"

    def __init__(self, image_processor: Part, tokenizer: Part) -> None:
        self.image_processor, self.tokenizer = image_processor, tokenizer

    def __call__(
        self, text: list[str], images: list[list[Tensor]], return_tensors: str = "pt"
    ) -> dict[str, Tensor]:
        """Write out each image's token as often as the image has patches."""
        found = self.image_processor(images=images, return_tensors=return_tensors)
        counts = found["image_grid_thw"].prod(-1) // self.image_processor.merge_size**2
        (first,), parts = text, []
        for piece, count in zip(
            first.split(self.image_token), [*counts.tolist(), 0], strict=True
        ):
            parts.append(piece + self.image_token * count)
        found |= self.tokenizer("".join(parts), return_tensors=return_tensors)
        token = self.tokenizer.convert_tokens_to_ids(self.image_token)
        return {**found, "mm_token_type_ids": (found["input_ids"] == token).long()}

    def save_pretrained(self, folder: Path) -> None:
        """Write both parts."""
        self.image_processor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def pad_entries(
    entries: dict[str, Tensor], length: int, pad_token: int
) -> dict[str, Tensor]:
    """Fill the entries ``[L]`` of a prompt up to ``length`` at their end."""
    missing = length - len(entries["input_ids"])
    values = {"input_ids": pad_token}
    return {
        name: torch.nn.functional.pad(value, (0, missing), value=values.get(name, 0))
        for name, value in entries.items()
    }


def check_entries(caller: str, entries: dict[str, Tensor]) -> None:
    """Refuse a processor whose answer lacks what a trunk needs."""
    missing = {"input_ids", "attention_mask"} - set(entries)
    if missing:
        raise SchemaError(
            f"{caller}: expected input_ids and attention_mask of the processor, got "
            f"none for {sorted(missing)}. Its tokenizer must return attention masks."
        )


_OF_TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
_OF_PIXELS = ("pixel_values", "pixel_attention_mask", "image_grid_thw", "image_sizes")
