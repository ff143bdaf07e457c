"""Action tokenizers: continuous actions to discrete tokens and back."""

from torchrl_vla.tokenizers.action_tokenizer import ActionTokenizerBase
from torchrl_vla.tokenizers.openvla import OpenVLAActionTokenizer
from torchrl_vla.tokenizers.tokenizer_registry import tokenizer_from_config
from torchrl_vla.tokenizers.uniform import UniformActionTokenizer
from torchrl_vla.tokenizers.vocab_tail import VocabTailActionTokenizer

__all__ = [
    "ActionTokenizerBase",
    "OpenVLAActionTokenizer",
    "UniformActionTokenizer",
    "VocabTailActionTokenizer",
    "tokenizer_from_config",
]
