"""Text encoders of ``transformers`` that are trained with the policy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from torchrl_vla.policies.encoders.known_texts import StoredTextEncoder
from torchrl_vla.policies.encoders.text_features import TokenStates
from torchrl_vla.policies.encoders.text_models import load_language_model
from torchrl_vla.schema import SchemaError, import_extra

_PAD = -1


class TransformersTextEncoder(StoredTextEncoder):
    """Encode texts by a language model whose weights belong to the policy.

    The model runs at every call, which its training needs, and for the states of its
    tokens. Where neither is needed, :class:`FrozenTextEncoder` runs it once per text.
    The tokens of known texts are stored with the weights.

    Args:
        architecture: the model's configuration, with ``model_type``.
        source: name, folder or repo id whose tokenizer reads new texts.
        dim: ``F``, size of an encoding.

    Keyword Args:
        max_tokens: ``L``; a longer text is refused.
        frozen: True = only the last linear layer is trained.

    Raises:
        MissingExtraError: ``transformers`` is not installed.
        SchemaError: at :meth:`prepare`, a text has more tokens.
        UnknownInstructionError: at :meth:`prepare`, a text is new and the tokenizer is
            not there.
    """

    def __init__(
        self,
        architecture: dict[str, Any],
        source: str,
        dim: int = 64,
        *,
        max_tokens: int = 32,
        frozen: bool = False,
    ) -> None:
        super().__init__(dim, (max_tokens,), torch.int64)
        transformers = import_extra("transformers", "vlm", type(self).__name__)
        config = transformers.AutoConfig.for_model(**architecture)
        self.architecture, self.source = architecture, source
        self.max_tokens, self.frozen = max_tokens, frozen
        self.model = transformers.AutoModel.from_config(config)
        self.model.requires_grad_(not frozen)
        self.out = nn.Linear(config.hidden_size, dim)
        self.norm = nn.LayerNorm(dim)

    @property
    def config(self) -> dict[str, object]:
        """The constructor's arguments."""
        return {
            "architecture": self.architecture,
            "source": self.source,
            "dim": self.num_features,
            "max_tokens": self.max_tokens,
            "frozen": self.frozen,
        }

    @classmethod
    def from_pretrained(
        cls,
        source: str,
        dim: int = 64,
        *,
        max_tokens: int = 32,
        frozen: bool = False,
    ) -> Self:
        """Read a language model: ``"minilm"``, ``"smollm2"``, a folder or a repo id.

        Raises:
            MissingExtraError: ``transformers`` or the package is not installed.
            FileNotFoundError: there is no such folder.
            SchemaError: there is no tokenizer, or weights are missing.
        """
        loaded = load_language_model(cls.__name__, source).model
        architecture = json.loads(loaded.config.to_json_string(use_diff=False))
        architecture.pop("quantization_config", None)  # the weights were unpacked
        encoder = cls(architecture, source, dim, max_tokens=max_tokens, frozen=frozen)
        encoder.model.load_state_dict(loaded.state_dict())
        return encoder

    def prepare(self, texts: Sequence[str]) -> Tensor:
        """Return tokens int64 ``[N, L]``, padded with -1, on the CPU."""
        return self.rows_of(texts)

    def forward(self, rows: Tensor) -> Tensor:
        """Encode tokens ``[N, L]`` as ``[N, F]``: their states' mean, projected."""
        states, is_pad = self.encode_tokens(rows)
        real = (~is_pad).unsqueeze(-1).to(states.dtype)
        return self.norm(self.out((states * real).sum(1) / real.sum(1)))

    def encode_tokens(self, rows: Tensor) -> TokenStates:
        """Return the last states of the tokens, ``[N, L, W]``."""
        is_pad = rows == _PAD
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            out = self.model(
                input_ids=rows.masked_fill(is_pad, 0), attention_mask=(~is_pad).long()
            )
        return TokenStates(out.last_hidden_state, is_pad)

    def train(self, mode: bool = True) -> Self:
        """Set the training mode; a frozen model stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.model.eval()
        return self

    def compute_rows(self, texts: Sequence[str]) -> Tensor:
        """Return the tokens of texts."""
        caller = type(self).__name__
        tokenizer = load_language_model(caller, self.source).tokenizer
        rows = torch.full((len(texts), self.max_tokens), _PAD, dtype=torch.int64)
        for row, text in zip(rows, texts, strict=True):
            tokens = tokenizer(text)["input_ids"]
            if len(tokens) > self.max_tokens:
                raise SchemaError(
                    f"{caller}: expected at most max_tokens={self.max_tokens} tokens, "
                    f"got {len(tokens)} of {text!r}. Build the encoder with "
                    f"max_tokens={len(tokens)} or more, or shorten the text."
                )
            row[: len(tokens)] = torch.tensor(tokens)
        return rows
