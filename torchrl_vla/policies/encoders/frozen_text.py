"""Text encoder on the features of frozen language models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from torchrl_vla.policies.encoders.known_texts import StoredTextEncoder
from torchrl_vla.policies.encoders.text_feature_cache import (
    read_features,
    write_features,
)
from torchrl_vla.policies.encoders.text_models import (
    load_language_model,
    model_fingerprint,
)
from torchrl_vla.schema import UnknownInstructionError

_CENTER, _SCALE = "center", "scale"


@dataclass(frozen=True)
class TextFeature:
    """One vector per text, read from a frozen language model.

    Args:
        model: ``"minilm"``, ``"smollm2"``, a folder of ``transformers`` or a repo id.
        width: ``W``, size of the model's states.
        layer: whose states are read: 0 = the embeddings, -1 = the last layer.
        pooling: the mean over the tokens, or the last token.
        prompt: what the model reads, with ``{}`` for the text.
        skip: first tokens that the mean leaves out. Decoder-only models gather their
            attention in the first token, whose state is huge and the same for all.

    Raises:
        ValueError: the prompt has no place for the text.
    """

    model: str
    width: int
    layer: int = -1
    pooling: Literal["mean", "last"] = "mean"
    prompt: str = "{}"
    skip: int = 0

    def __post_init__(self) -> None:
        if "{}" not in self.prompt:
            raise ValueError(
                "TextFeature: expected '{}' in the prompt, where the text goes, got "
                f"{self.prompt!r}."
            )

    def read(self, states: Sequence[Tensor]) -> Tensor:
        """Return the vector ``[W]`` of the states of a prompt's tokens."""
        state = states[self.layer]
        return state[-1] if self.pooling == "last" else state[self.skip :].mean(0)


class FrozenTextEncoder(StoredTextEncoder):
    """Encode texts by a linear layer on features of frozen language models.

    The features of a text are computed once, whatever the number of steps, and stored
    with the weights: a policy that was loaded encodes its texts without the models.
    Each model's features are normalized and centred on the texts of the policy's first
    table, since most of a feature is common to all texts.

    Args:
        features: read side by side, e.g. of two models.
        dim: ``F``, size of an encoding.

    Raises:
        ValueError: there is no feature.
        UnknownInstructionError: at :meth:`prepare`, there was no table to centre on, or
            a text is new and a model is not installed.

    Examples:
        >>> minilm = TextFeature("minilm", width=384)
        >>> encoder = FrozenTextEncoder((minilm,), dim=64)
        >>> encoder.num_features
        64
    """

    def __init__(self, features: tuple[TextFeature, ...], dim: int = 64) -> None:
        width = sum(feature.width for feature in features)
        if not features:
            raise ValueError(
                "FrozenTextEncoder: expected at least one TextFeature, got none."
            )
        super().__init__(dim, (width,), torch.float32)
        self.features = features
        self.out = nn.Linear(width, dim)
        self.norm = nn.LayerNorm(dim)
        self._center = torch.zeros(width)
        self._scale = torch.zeros(width)  # 0 = not fitted
        self._first: tuple[str, ...] = ()

    @property
    def config(self) -> dict[str, object]:
        """The constructor's arguments."""
        return {"features": self.features, "dim": self.num_features}

    def expect(self, texts: Sequence[str]) -> None:
        """Take note of texts; the features are centred on the first that it is told."""
        super().expect(texts)
        self._first = self._first or tuple(texts)

    def prepare(self, texts: Sequence[str]) -> Tensor:
        """Return centred features, float32 ``[N, W]`` on the CPU."""
        rows = self.rows_of(texts)
        self._fit()
        return (rows - self._center) * self._scale

    def forward(self, rows: Tensor) -> Tensor:
        """Encode features ``[N, W]`` as ``[N, F]``."""
        return self.norm(self.out(rows.to(self.out.weight.dtype)))

    def compute_rows(self, texts: Sequence[str]) -> Tensor:
        """Return features of unit length, ``[N, W]``.

        Features that were computed before are read from the user's cache.
        """
        parts: list[Tensor] = []
        for _, group in groupby(self.features, lambda x: (x.model, x.prompt)):
            parts += _read_group(type(self).__name__, tuple(group), texts)
        return torch.cat([normalize(part, dim=-1) for part in parts], -1)

    def _fit(self) -> None:
        """Centre and scale on the first texts, once."""
        if self._scale.any():
            return
        if not self._first:
            raise UnknownInstructionError(
                "FrozenTextEncoder: expected a table of instructions to centre the "
                "features on, got none. Set policy.instructions = "
                "dataset.instructions before the policy is trained."
            )
        rows = self.rows_of(self._first)
        center = rows.mean(0)
        models = [feature.model for feature in self.features]
        scales: list[Tensor] = []
        widths = [feature.width for feature in self.features]
        for model, part in zip(models, (rows - center).split(widths, -1), strict=True):
            length = part.norm(dim=-1).mean().clamp_min(1e-6)
            # Each model has the same weight, and a row the length of a unit normal.
            share = len(set(models)) * models.count(model)
            size = (rows.shape[-1] / share) ** 0.5
            scales.append((size / length).expand(part.shape[-1]))
        self._center, self._scale = center, torch.cat(scales)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        if self._first and not keep_vars:
            self._fit()
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + _CENTER] = self._center
        destination[prefix + _SCALE] = self._scale

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        names = (prefix + _CENTER, prefix + _SCALE)
        if all(name in state_dict for name in names):
            self._center, self._scale = (state_dict.pop(name).cpu() for name in names)
        else:
            arguments[2].extend(names)
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def _read_group(
    caller: str, features: tuple[TextFeature, ...], texts: Sequence[str]
) -> list[Tensor]:
    """Return the vectors ``[N, W]`` of features of one model and prompt."""
    source, prompt = features[0].model, features[0].prompt
    fingerprint = model_fingerprint(caller, source)
    keys = [f"{fingerprint} {asdict(feature) | {'model': ''}}" for feature in features]
    known: list[dict[str, Tensor]] = [{} for _ in features]
    if fingerprint is not None:
        known = [read_features(key) for key in keys]
    new = [text for text in texts if any(text not in found for found in known)]
    if new:
        language = load_language_model(caller, source)
        for text in new:
            states = language.hidden_states(prompt.replace("{}", text))
            for found, feature in zip(known, features, strict=True):
                found[text] = feature.read(states).clone()
        if fingerprint is not None:
            for key, found in zip(keys, known, strict=True):
                write_features(key, found)
    return [torch.stack([found[text] for text in texts]) for found in known]
