"""Settings of a vision-language trunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch

from torchrl_vla._internal.option_names import Attention, Precision, StateInput
from torchrl_vla.policies.vlm.adaptation import LoRAConfig
from torchrl_vla.schema import check_positive_int


@dataclass(frozen=True)
class TrunkConfig:
    """Inputs and precision of a vision-language trunk.

    Args:
        image_sizes: ``(C, h, w)`` of each image, in the order of ``cameras``; images of
            other sizes are refused. What they are resized to is the processor's.
        cameras: names of the cameras; None = one image without a name; ``()`` = no
            image is read.
        state_dim: ``S``; None = no state is read.
        state: where the state goes: to the action head, behind the prompt as one
            projected token, or behind the prompt as the numbers of its bins.
        prompt: text around the instruction, with one ``{instruction}``.
        text_length: tokens kept for the text; longer prompts are refused. Every prompt
            is padded to it, so a row's numbers depend on no other row's text.
        attention: implementation of ``transformers``. Both take the masks that the
            heads need.
        precision: in which the trunk computes; its results, the heads and all
            log-probabilities are float32.
        frozen: True = no weight of the model is trained, the image encoder of a
            language model and its projection excepted.
        lora: adapters that are trained in place of the model's weights.
        checkpoints_layers: True = the backward pass computes each layer of the language
            model again, which takes less memory and more time.

    Raises:
        ValueError: there is not one size for each image, the prompt has no place for
            the instruction, or a name is unknown.

    Examples:
        >>> TrunkConfig(image_sizes=((3, 64, 64),)).num_images
        1
    """

    image_sizes: tuple[tuple[int, int, int], ...] = ()
    cameras: tuple[str, ...] | None = None
    state_dim: int | None = None
    state: StateInput = "head"
    prompt: str = "{instruction}"
    text_length: int = 48
    attention: Attention = "sdpa"
    precision: Precision = "float32"
    frozen: bool = False
    lora: LoRAConfig | None = None
    checkpoints_layers: bool = False

    def __post_init__(self) -> None:
        check_positive_int("TrunkConfig", "text_length", self.text_length)
        if len(self.image_sizes) != self.num_images:
            raise ValueError(
                f"TrunkConfig: expected {self.num_images} image_sizes for "
                f"cameras={self.cameras}, got {self.image_sizes}. Give one (C, h, w) "
                "per image, in the order of cameras; cameras=() reads none."
            )
        if self.prompt.count("{instruction}") != 1:
            raise ValueError(
                "TrunkConfig: expected one '{instruction}' in prompt, got "
                f"{self.prompt!r}."
            )
        for name, kind in (
            ("state", StateInput),
            ("attention", Attention),
            ("precision", Precision),
        ):
            if vars(self)[name] not in get_args(kind):
                raise ValueError(
                    f"TrunkConfig: expected {name} of {get_args(kind)}, got "
                    f"{vars(self)[name]!r}."
                )

    @property
    def num_images(self) -> int:
        """Number of images that are read."""
        return 1 if self.cameras is None else len(self.cameras)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the trunk computes in."""
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32
