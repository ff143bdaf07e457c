"""Trunk of a language model that sees through a separate image encoder."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from torchrl_vla.policies.encoders.image_features import ImageEncoder
from torchrl_vla.policies.vlm.prefix import Prefix
from torchrl_vla.policies.vlm.processors import Model, PromptProcessor
from torchrl_vla.policies.vlm.trunk import BLOCK, VLATrunk, ahead
from torchrl_vla.policies.vlm.trunk_config import TrunkConfig
from torchrl_vla.schema import ObservationKeys


class CausalTrunk(VLATrunk):
    """Put image features in front of the prompt of any ``AutoModelForCausalLM``.

    The encoder's patches go through a trained linear projection and stand before the
    text, camera by camera. Make one with :func:`load_trunk`.

    Args:
        model: a causal language model.
        processor: its tokenizer.
        config: inputs and precision.
        keys: observation entries that are read.
        image_encoder: one for all cameras; None = no image is read.
    """

    sees = False

    def __init__(
        self,
        model: Model,
        processor: PromptProcessor,
        config: TrunkConfig,
        keys: ObservationKeys = ObservationKeys(),
        image_encoder: ImageEncoder | None = None,
    ) -> None:
        super().__init__(model, processor, config, keys)
        self.image_encoder = image_encoder
        if image_encoder is not None:
            size = image_encoder.num_features
            self.image_projection = nn.Linear(size, self.hidden_size)

    def encode_prompt(self, tensordict: TensorDictBase) -> Prefix:
        """Encode images and instruction, in the precision that is set."""
        entries = self.rows.prompts(tensordict, self.device)
        images = self.rows.images(tensordict)
        parts = [self._see(image.to(self.device)) for image in images]
        parts.append(self.embed(entries["input_ids"]))
        n, seen = len(parts[-1]), sum(part.shape[1] for part in parts[:-1])
        mask = entries["attention_mask"].bool()
        mask = torch.cat([mask.new_ones(n, seen), mask], 1)
        filling = -mask.shape[1] % BLOCK
        mask = nn.functional.pad(mask, (0, filling))
        self._check_length(mask.shape[1])
        embeddings = nn.functional.pad(torch.cat(parts, 1), (0, 0, 0, filling))
        count = mask.shape[1]
        keys = ahead(count, mask.device, causal=True) & mask[:, None, :]
        keys = keys | torch.eye(count, dtype=torch.bool, device=mask.device)
        positions = (mask.long().cumsum(1) - 1).clamp_min(0)
        states, cache = self._run_decoder(embeddings, keys, positions, ())
        return Prefix(states.float(), mask, mask.sum(1), cache)

    def _see(self, images: Tensor) -> Tensor:
        """Return the tokens ``[N, P, F]`` of images ``[N, C, h, w]``."""
        assert self.image_encoder is not None, "checked by load_trunk"
        # In whole blocks of images: convolutions round as matrix products do. Only the
        # CPU keeps a row's bits so; elsewhere it would be work for nothing.
        missing = -len(images) % BLOCK if images.device.type == "cpu" else 0
        filling = images[-1:].expand(missing, -1, -1, -1)
        patches = self.image_encoder.encode(torch.cat([images, filling])).patches
        return self.image_projection(patches)[: len(images)]

    def _images_of_prompt(self) -> list[Tensor]:
        return []
