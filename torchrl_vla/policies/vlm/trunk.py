"""Trunk of vision-language policies: a language model that has seen the images."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from typing_extensions import Self

from torchrl_vla.policies.encoders.image_features import ImageEncoder
from torchrl_vla.policies.vlm.adaptation import (
    checkpoint_layers,
    inject_adapters,
    merge_adapters,
)
from torchrl_vla.policies.vlm.observations import Entries, ObservationRows
from torchrl_vla.policies.vlm.prefix import LayerCache, Prefix
from torchrl_vla.policies.vlm.processors import (
    Model,
    PromptProcessor,
    check_entries,
    pad_entries,
)
from torchrl_vla.policies.vlm.state_text import StateText
from torchrl_vla.policies.vlm.trunk_cache import layers_of, make_cache
from torchrl_vla.policies.vlm.trunk_config import TrunkConfig
from torchrl_vla.schema import InstructionTable, ObservationKeys, SchemaError

#: Sequences are filled up to a multiple of this. A matrix product on the CPU computes
#: blocks of rows, and a block that is not full rounds differently.
BLOCK = 8


class VLATrunk(nn.Module, ABC):
    """Encode images, an instruction and, where it is asked to, the state.

    Abstract: subclasses differ in how images get into the language model. A head reads
    :meth:`encode`'s states, keys and values, and adds tokens of its own behind them by
    :meth:`extend`. A row's numbers do not depend on the rows beside it.

    Args:
        model: of ``transformers``, with a language-model head.
        processor: makes its inputs.
        config: inputs and precision.
        keys: observation entries that are read.

    Raises:
        SchemaError: the model is text-only and images are asked for, or its context
            is too short.
    """

    #: True = the model takes images itself.
    sees: ClassVar[bool]
    #: What sees in its place.
    image_encoder: ImageEncoder | None

    def __init__(
        self,
        model: Model,
        processor: PromptProcessor,
        config: TrunkConfig,
        keys: ObservationKeys = ObservationKeys(),
    ) -> None:
        super().__init__()
        if not config.num_images:
            keys = replace(keys, image=None)
        if config.state_dim is None:
            keys = replace(keys, state=None)
        self.model, self.config, self.keys = model, config, keys
        self.processor, self.image_encoder = processor, None
        self.rows = ObservationRows(config, keys, self.encode_text)
        self._decoder_arguments = set(
            inspect.signature(inspect.unwrap(model.get_decoder().forward)).parameters
        )
        self._template = self._encode_template()
        text = model.config.get_text_config()
        self.hidden_size: int = text.hidden_size
        if config.state == "token" and config.state_dim is not None:
            self.state_token = nn.Linear(config.state_dim, self.hidden_size)
        self._state_text: StateText | None = None
        if config.state == "text" and config.state_dim is not None:
            self._state_text = StateText(config.state_dim, processor.tokenizer)
        self._check_context(text.max_position_embeddings)
        self._adapt()

    @property
    def instructions(self) -> InstructionTable | None:
        """The table that gives instruction ids their texts."""
        return self.rows.instructions

    @instructions.setter
    def instructions(self, table: InstructionTable | None) -> None:
        self.rows.instructions = table

    @property
    def decoder(self) -> nn.Module:
        """The language model without its head."""
        return self.model.get_decoder()

    @property
    def tokenizer(self):
        """The tokenizer of ``transformers``."""
        return self.processor.tokenizer

    @property
    def vocab_size(self) -> int:
        """``V``, size of the language-model head's answer."""
        return self.model.get_output_embeddings().weight.shape[0]

    @property
    def num_layers(self) -> int:
        """Layers of the language model."""
        return self.model.config.get_text_config().num_hidden_layers

    def merge_adapters(self) -> Self:
        """Add the adapters to the weights under them, in place; return itself."""
        if self.config.lora is not None:
            merge_adapters(self.model)
            self.config = replace(self.config, lora=None, frozen=True)
        return self

    @property
    def attention_shape(self) -> tuple[int, int, int]:
        """Heads, groups of heads with the same keys ``G``, and size of a head ``D``."""
        text = self.model.config.get_text_config()
        heads = text.num_attention_heads
        size = vars(text).get("head_dim") or text.hidden_size // heads
        return heads, vars(text).get("num_key_value_heads") or heads, size

    @property
    def rotary_base(self) -> float:
        """The base of the rotary positions of the language model's keys."""
        text = vars(self.model.config.get_text_config())
        found = text.get("rope_parameters") or {}
        found = found.get("full_attention", found)
        return float(found.get("rope_theta") or text.get("rope_theta") or 10_000.0)

    def train(self, mode: bool = True) -> Self:
        """Set the training mode; the model stays in evaluation mode.

        Dropout or batch statistics would make a log-probability another number each
        time.
        """
        super().train(mode)
        for part in (self.model, self.image_encoder):
            if part is not None:
                part.eval()
        return self

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.model.get_input_embeddings().weight.device

    @property
    def prompt_length(self) -> int:
        """``L`` of a prompt, with its images and padding, a multiple of 8."""
        length = len(self._template["input_ids"]) + self.config.text_length
        return length + -length % BLOCK

    def encode(self, tensordict: TensorDictBase) -> Prefix:
        """Encode observations as ``N`` rows of states, keys and values.

        Args:
            tensordict: ``[*B]`` with what ``keys`` name.

        Raises:
            MissingKeyError: an entry is missing.
            SchemaError: an entry has another shape, or a prompt is too long.
        """
        with self._precision():
            prefix = self.encode_prompt(tensordict)
        if self.config.state_dim is None or self.config.state == "head":
            return prefix
        state = self.rows.state(tensordict).to(self.device)
        if self._state_text is not None:
            tokens = self.embed(self._state_text.tokens(state))
        else:
            tokens = self.embed_state(state)
        return self.extend(prefix, tokens, causal=True)[1]

    @abstractmethod
    def encode_prompt(self, tensordict: TensorDictBase) -> Prefix:
        """Encode images and instruction, in the precision that is set."""

    def embed_state(self, state: Tensor) -> Tensor:
        """Project states ``[N, S]`` to tokens ``[N, 1, F]``."""
        missing = -len(state) % BLOCK
        rows = torch.cat([state, state[-1:].expand(missing, -1)])
        return self.state_token(rows)[: len(state)].unsqueeze(1)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the embeddings ``[N, T, F]`` of tokens int64 ``[N, T]``."""
        return self.model.get_input_embeddings()(tokens)

    def logits(self, states: Tensor) -> Tensor:
        """Return the language-model head's logits, float32 ``[..., V]``."""
        text = self.model.config.get_text_config()
        with self._precision():
            logits = self.model.get_output_embeddings()(states)
        logits = logits.float()
        cap = vars(text).get("final_logit_softcapping")
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def extend(
        self,
        prefix: Prefix,
        embeddings: Tensor,
        *,
        causal: bool,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Prefix]:
        """Run tokens behind a prefix, which is not computed again.

        Args:
            prefix: ``N`` rows; each token sees all of it.
            embeddings: of the new tokens, ``[N, T, F]``.

        Keyword Args:
            causal: True = a new token sees the new ones before it and itself; False =
                all new tokens see each other.
            mask: bool ``[N, T]``, True = a token, False = padding at the end; None =
                all are tokens.

        Returns:
            The last hidden states of the new tokens, float32 ``[N, T, F]``, and the
            prefix with them at its end.

        Raises:
            SchemaError: prefix and tokens are longer than the context.
        """
        n, count = embeddings.shape[:2]
        if mask is None:
            mask = prefix.mask.new_ones(n, count)
        self._check_length(prefix.mask.shape[1] + count)
        filling = -count % BLOCK
        new = nn.functional.pad(embeddings, (0, 0, 0, filling))
        valid = nn.functional.pad(mask, (0, filling))
        positions = prefix.positions[:, None] + torch.arange(
            count + filling, device=mask.device
        )
        seen = ahead(count + filling, mask.device, causal) & valid[:, None, :]
        seen = seen | torch.eye(count + filling, dtype=torch.bool, device=mask.device)
        seen = torch.cat(
            [prefix.mask[:, None, :].expand(-1, count + filling, -1), seen], -1
        )
        with self._precision():
            states, cache = self._run_decoder(new, seen, positions, prefix.cache)
        length = prefix.mask.shape[1] + count
        states = states[:, :count].float()
        return states, Prefix(
            torch.cat([prefix.states, states], 1),
            torch.cat([prefix.mask, mask], 1),
            prefix.positions + mask.sum(1),
            tuple((k[:, :, :length], v[:, :, :length]) for k, v in cache),
        )

    def encode_text(self, instruction: str) -> Entries:
        """Return the entries ``[L]`` of an instruction's prompt, padded.

        Raises:
            SchemaError: it has more tokens than the configuration keeps for it.
        """
        prompt = self.config.prompt.replace("{instruction}", instruction)
        entries = self.processor.encode_text(prompt, self._images_of_prompt())
        check_entries(type(self).__name__, entries)
        spare = self.prompt_length - len(entries["input_ids"])
        if spare < 0:
            most = self.config.text_length
            raise SchemaError(
                f"TransformersVLA: expected a prompt of at most {most} text tokens, "
                f"got {most - spare} for {prompt!r}. Raise text_length of TrunkConfig "
                "(--text-length), or shorten the instruction."
            )
        pad_token = self.tokenizer.pad_token_id or 0
        return pad_entries(entries, self.prompt_length, pad_token)

    def _run_decoder(
        self,
        embeddings: Tensor,
        seen: Tensor,
        positions: Tensor,
        past: Sequence[LayerCache],
    ) -> tuple[Tensor, tuple[LayerCache, ...]]:
        """Return states ``[N, T, F]`` and the keys and values of past and new tokens.

        Args:
            embeddings: ``[N, T, F]``.
            seen: bool ``[N, T, L + T]``, True = the query sees the key.
            positions: int64 ``[N, T]``.
            past: keys and values of ``L`` tokens.
        """
        cache = make_cache(past)
        states = self.decoder(
            inputs_embeds=embeddings,
            attention_mask=additive_mask(seen, self._mask_dtype(embeddings)),
            position_ids=positions,
            use_cache=True,
            **{self._cache_name: cache},
        ).last_hidden_state
        return states, layers_of(cache)

    @property
    def _cache_name(self) -> str:
        # Renamed in transformers 5.
        return "cache" if "cache" in self._decoder_arguments else "past_key_values"

    def _precision(self):
        on = self.config.dtype != torch.float32
        return torch.autocast(self.device.type, self.config.dtype, enabled=on)

    def _mask_dtype(self, embeddings: Tensor) -> torch.dtype:
        on = self.config.dtype != torch.float32
        return self.config.dtype if on else embeddings.dtype

    @abstractmethod
    def _images_of_prompt(self) -> list[Tensor]:
        """Return blank images for which the processor writes tokens into a prompt."""

    def _encode_template(self) -> Entries:
        prompt = self.config.prompt.replace("{instruction}", "")
        return self.processor.encode_text(prompt, self._images_of_prompt())

    def _adapt(self) -> None:
        if self.config.frozen or self.config.lora is not None:
            self.model.requires_grad_(False)
        if self.config.lora is not None:
            inject_adapters(self.model, self.config.lora)
        if self.config.checkpoints_layers:
            checkpoint_layers(self.decoder)

    def _check_context(self, longest: int) -> None:
        self._context = longest
        self._check_length(self.prompt_length)

    def _check_length(self, length: int) -> None:
        if length > self._context:
            images = len(self._template["input_ids"])
            raise SchemaError(
                f"TransformersVLA: expected at most {self._context} tokens, the "
                f"model's context, got {length}, of which {images} are images and "
                f"prompt template and {self.config.text_length} are kept for the "
                "instruction. Lower text_length of TrunkConfig, the number or size of "
                "the images, or the length of what is generated."
            )


def additive_mask(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``[N, 1, T, L]``: 0 where the query sees the key, else the minimum."""
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min).unsqueeze(1)


def ahead(count: int, device: torch.device, causal: bool) -> Tensor:
    """Return which of ``count`` tokens each one sees, bool ``[count, count]``."""
    full = torch.ones(count, count, dtype=torch.bool, device=device)
    return full.tril() if causal else full
