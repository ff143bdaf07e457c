"""Continuous actions to discrete tokens and back."""

from torchrl_vla.tokenizers.action_tokenizer import ActionTokenizerBase
from torchrl_vla.tokenizers.uniform import UniformActionTokenizer
from torchrl_vla.tokenizers.vocab_tail import VocabTailActionTokenizer

__all__ = ["ActionTokenizerBase", "UniformActionTokenizer", "VocabTailActionTokenizer"]
