"""Action tokenizers: continuous actions to discrete tokens and back."""

from torchrl_vla.tokenizers.action_tokenizer import ActionTokenizerBase
from torchrl_vla.tokenizers.beast import BEASTActionTokenizer
from torchrl_vla.tokenizers.chunk_tokenizer import ChunkActionTokenizer
from torchrl_vla.tokenizers.fast import FASTActionTokenizer
from torchrl_vla.tokenizers.fast_grammar import FASTGrammar
from torchrl_vla.tokenizers.flat import FlatActionTokenizer, as_chunk_tokenizer
from torchrl_vla.tokenizers.openvla import OpenVLAActionTokenizer
from torchrl_vla.tokenizers.token_grammar import PositionGrammar, TokenGrammar
from torchrl_vla.tokenizers.tokenizer_registry import tokenizer_from_config
from torchrl_vla.tokenizers.tokenizer_report import TokenizerReport, tokenizer_report
from torchrl_vla.tokenizers.uniform import UniformActionTokenizer
from torchrl_vla.tokenizers.vocab_tail import VocabTailActionTokenizer

__all__ = [
    "ActionTokenizerBase",
    "BEASTActionTokenizer",
    "ChunkActionTokenizer",
    "FASTActionTokenizer",
    "FASTGrammar",
    "FlatActionTokenizer",
    "OpenVLAActionTokenizer",
    "PositionGrammar",
    "TokenGrammar",
    "TokenizerReport",
    "UniformActionTokenizer",
    "VocabTailActionTokenizer",
    "as_chunk_tokenizer",
    "tokenizer_from_config",
    "tokenizer_report",
]
