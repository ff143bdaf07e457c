"""Encoders of the command line, by name, folder or repo id."""

from __future__ import annotations

from torchrl_vla.policies.encoders.efficientnet_lite import EfficientNetLiteEncoder
from torchrl_vla.policies.encoders.frozen_text import FrozenTextEncoder, TextFeature
from torchrl_vla.policies.encoders.image_features import ImageEncoder
from torchrl_vla.policies.encoders.image_input import Resize
from torchrl_vla.policies.encoders.named_text_encoders import TEXT_ENCODERS
from torchrl_vla.policies.encoders.text_features import TextEncoder
from torchrl_vla.policies.encoders.text_models import load_language_model
from torchrl_vla.policies.encoders.timm_image import TimmImageEncoder
from torchrl_vla.policies.encoders.transformers_image import TransformersImageEncoder
from torchrl_vla.policies.encoders.transformers_text import TransformersTextEncoder

_EFFICIENTNET, _TIMM = "efficientnet-lite0", "timm:"


def make_text_encoder(
    source: str, *, dim: int = 64, frozen: bool = True
) -> TextEncoder:
    """Make a pretrained text encoder.

    Args:
        source: a name in :data:`TEXT_ENCODERS` (``"minilm"``, ``"smollm2"``,
            ``"minilm+smollm2"``), a folder of ``transformers`` or a repo id, whose
            last states are averaged.

    Keyword Args:
        dim: size of an encoding.
        frozen: False = the language model is trained with the policy, which takes one
            model.

    Raises:
        MissingExtraError: the package with the weights is not installed.
        FileNotFoundError: there is no such folder.
        SchemaError: there is no tokenizer, it is a vision model, or weights are
            missing.

    Examples:
        >>> make_text_encoder("minilm").num_features
        64
    """
    if not frozen:
        return TransformersTextEncoder.from_pretrained(source, dim)
    features = TEXT_ENCODERS.get(source)
    if features is None:
        language = load_language_model("make_text_encoder", source)
        width = language.model.config.hidden_size
        # A decoder gathers its attention in the first token, so one is put before.
        first = language.tokenizer.eos_token if language.is_causal else ""
        prompt, skip = first + "{}", len(language.tokenizer.tokenize(first))
        features = (TextFeature(source, width, prompt=prompt, skip=skip),)
    return FrozenTextEncoder(features, dim)


def make_image_encoder(
    source: str, *, resize: Resize = "refuse", frozen: bool = True
) -> ImageEncoder:
    """Make a pretrained image encoder.

    Args:
        source: ``"efficientnet-lite0"``, a folder of ``transformers``, a repo id, or
            ``"timm:NAME"``, whose weights ``timm`` downloads.

    Keyword Args:
        resize: what happens to images of another size than the network's.
        frozen: False = the network is trained with the policy.

    Raises:
        MissingExtraError: the package with the weights is not installed.
        FileNotFoundError: there is no such folder.
        SchemaError: there is no image processor, it is a language model, or weights
            are missing.
    """
    if source == _EFFICIENTNET:
        return EfficientNetLiteEncoder.from_package(resize=resize, frozen=frozen)
    if source.startswith(_TIMM):
        name = source.removeprefix(_TIMM)
        return TimmImageEncoder.from_pretrained(name, resize=resize, frozen=frozen)
    return TransformersImageEncoder.from_pretrained(
        source, resize=resize, frozen=frozen
    )
