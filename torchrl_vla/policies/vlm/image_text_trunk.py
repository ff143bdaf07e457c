"""Trunk of a vision-language model of ``transformers``."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_vla.policies.vlm.observations import Entries
from torchrl_vla.policies.vlm.prefix import Prefix
from torchrl_vla.policies.vlm.trunk import VLATrunk, additive_mask, ahead
from torchrl_vla.policies.vlm.trunk_cache import layers_of, make_cache


class ImageTextTrunk(VLATrunk):
    """Run any ``AutoModelForImageTextToText``: SmolVLM, PaliGemma, Qwen-VL, Gemma 3.

    Its own forward pass puts image features at the image tokens of the prompt, which
    its own processor wrote; masks and positions are made here, for rows that are padded
    to one length. Make one with :func:`load_trunk`.
    """

    sees = True

    def encode_prompt(self, tensordict: TensorDictBase) -> Prefix:
        """Encode images and instruction, in the precision that is set."""
        entries = self.rows.prompts(tensordict, self.device)
        pixels = self._pixels(self.rows.images(tensordict))
        mask = entries["attention_mask"].bool()
        positions, following = self._positions(entries, pixels, mask)
        cache = make_cache(())
        states = self.model.base_model(
            input_ids=entries["input_ids"],
            attention_mask=additive_mask(
                self._seen(entries, mask), self._mask_dtype(self._weight)
            ),
            position_ids=positions,
            use_cache=True,
            **{self._cache_name: cache},
            **pixels,
        ).last_hidden_state
        return Prefix(states.float(), mask, following, layers_of(cache))

    @property
    def _weight(self) -> Tensor:
        return self.model.get_input_embeddings().weight

    def _images_of_prompt(self) -> list[Tensor]:
        return [torch.zeros(s, dtype=torch.uint8) for s in self.config.image_sizes]

    def _pixels(self, images: list[Tensor]) -> Entries:
        if not images:
            return {}
        rows = [list(row) for row in zip(*(i.cpu() for i in images), strict=True)]
        pixels = self.processor.encode_images(rows)
        return {name: value.to(self.device) for name, value in pixels.items()}

    def _positions(
        self, entries: Entries, pixels: Entries, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the tokens' positions, and that of the token behind them, ``[N]``."""
        family = self.processor.family
        if not family.has_grid_positions:
            counted = mask.long().cumsum(1) - 1
            positions = counted.clamp_min(0) + family.first_position
            return positions, mask.sum(1) + family.first_position
        positions, _ = self.model.base_model.get_rope_index(
            entries["input_ids"],
            image_grid_thw=pixels.get("image_grid_thw"),
            attention_mask=mask.long(),
            mm_token_type_ids=entries["mm_token_type_ids"],
        )
        last = positions.masked_fill(~mask, -1).amax((0, 2))
        return positions, last + 1

    def _seen(self, entries: Entries, mask: Tensor) -> Tensor:
        """Return which keys each query sees, bool ``[N, L, L]``."""
        count = mask.shape[1]
        seen = ahead(count, mask.device, causal=True)
        match self.processor.family.sees_ahead:
            case "prompt":
                seen = torch.ones_like(seen)
            case "images":
                is_image = entries["token_type_ids"] == 1
                before = torch.nn.functional.pad(is_image[:, :-1], (1, 0))
                image = (is_image & ~before).long().cumsum(1)
                same = image[:, :, None] == image[:, None, :]
                seen = seen | (same & is_image[:, :, None] & is_image[:, None, :])
        return (seen & mask[:, None, :]) | torch.eye(
            count, dtype=torch.bool, device=mask.device
        )
