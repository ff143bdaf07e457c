"""Registry of action tokenizers by the class name in their config."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from torchrl_vla.schema import TokenError
from torchrl_vla.tokenizers.action_tokenizer import ActionTokenizerBase
from torchrl_vla.tokenizers.beast import BEASTActionTokenizer
from torchrl_vla.tokenizers.fast import FASTActionTokenizer
from torchrl_vla.tokenizers.openvla import OpenVLAActionTokenizer
from torchrl_vla.tokenizers.uniform import UniformActionTokenizer
from torchrl_vla.tokenizers.vocab_tail import VocabTailActionTokenizer

_CLASSES: dict[str, type[ActionTokenizerBase]] = {
    "BEASTActionTokenizer": BEASTActionTokenizer,
    "FASTActionTokenizer": FASTActionTokenizer,
    "OpenVLAActionTokenizer": OpenVLAActionTokenizer,
    "UniformActionTokenizer": UniformActionTokenizer,
    "VocabTailActionTokenizer": VocabTailActionTokenizer,
}


def tokenizer_from_config(config: Mapping[str, object]) -> ActionTokenizerBase:
    """Build the action tokenizer whose ``to_config()`` wrote this config.

    Args:
        config: ``"class"`` is the name of a class of this package, or
            ``"module:Class"``, which is imported; the rest goes to its
            ``from_config``.

    Raises:
        TokenError: there is no such class, or it is not a tokenizer.

    Examples:
        >>> config = UniformActionTokenizer(4, low=-1.0, high=1.0).to_config()
        >>> config
        {'class': 'UniformActionTokenizer', 'num_bins': 4, 'low': -1.0, 'high': 1.0}
        >>> tokenizer_from_config(config).vocab_size
        4
    """
    arguments = dict(config)
    name = str(arguments.pop("class", None))
    found = _CLASSES.get(name) or _import(name)
    if found is None:
        raise TokenError(
            "tokenizer_from_config: expected at 'class' one of "
            f"{sorted(_CLASSES)} or 'module:Class' of an ActionTokenizerBase, got "
            f"{name!r}. Make its module importable, or write the config again with "
            "to_config()."
        )
    return found.from_config(arguments)


def _import(name: str) -> type[ActionTokenizerBase] | None:
    module, _, class_name = name.partition(":")
    try:
        found: object = import_module(module)
        for part in class_name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError):
        return None
    if isinstance(found, type) and issubclass(found, ActionTokenizerBase):
        return found
    return None
