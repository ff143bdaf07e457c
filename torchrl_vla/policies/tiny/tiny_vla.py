"""Tiny policies with a regression and with a token head."""

from __future__ import annotations

from tensordict import TensorDictBase
from torch import Tensor

from torchrl_vla._internal.torchrl_spellings import torchrl_spellings
from torchrl_vla.policies.tiny.backbone import BackboneConfig, TinyBackbone
from torchrl_vla.policies.tiny.tiny_gaussian import StdConfig, TinyGaussianVLA
from torchrl_vla.policies.tiny.tiny_policy import TinyPolicy, keys_read
from torchrl_vla.policies.tokens.token_policy import TokenVLAWrapper
from torchrl_vla.policies.tokens.token_sampling import TokenSampling
from torchrl_vla.policies.vla_policy import ContinuousVLAWrapper
from torchrl_vla.schema import InstructionTable, ObservationKeys
from torchrl_vla.tokenizers import ActionTokenizerBase

_TOKENS = "TinyTokenVLA(action_tokenizer=..., sampling=...), which samples tokens"


@torchrl_spellings(
    records={
        "backbone": (BackboneConfig, {"hidden_dim": "hidden", "text_dim": "text_dim"})
    },
    same={
        "action_head": ("continuous",),
        "use_state": (True,),
        "input_mode": ("canonical",),
        "output_mode": (None,),
        "inplace": (True,),
        "return_vla_action_container": (True, False),
        "return_logits": (False,),
        "logits_only": (False,),
    }
    | dict.fromkeys(
        ("action_tokenizer", "device", "mode", "num_samples", "return_log_probs"),
        (None,),
    ),
    instead={
        "use_state": "keys=ObservationKeys(state=None)",
        "text_vocab": "none: an instruction is read as UTF-8 bytes",
        "input_mode": "data in the canonical schema",
        "return_vla_action_container": "none: its outputs are at keys of their own",
        "inplace": "policy(data.copy()), where the input must not change",
        "device": "policy.to(device)",
    }
    | dict.fromkeys(
        (
            "action_head",
            "action_tokenizer",
            "default_interaction_type",
            "log_probs_mode",
            "logits_only",
            "mode",
            "num_samples",
            "output_mode",
            "return_log_probs",
            "return_logits",
            "vocab_size",
        ),
        _TOKENS,
    ),
)
class TinyVLA(TinyPolicy, ContinuousVLAWrapper):
    """Predict a chunk of continuous actions from images, state and an instruction.

    About 0.6 million weights that use all three inputs. **Reads** uint8 (or float in
    0..1) images ``[*B, C, h, w]``, float state ``[*B, S]``, text or int64 ids ``[*B]``.
    **Writes** ``action_chunk`` float ``[*B, H, A]``.

    Keyword Args:
        action_dim: ``A``.
        chunk_size: ``H``.
        backbone: sizes, cameras and image sizes.
        keys: observation entries that the policy reads.
        instructions: table for instruction ids; text needs none.

    Raises:
        SchemaError: an image is not what was declared (layout, size, range, cameras).
        UnknownInstructionError: an id is not in ``instructions``.
        MissingKeyError: an input is missing.

    Examples:
        >>> import torch
        >>> from tensordict import NonTensorStack, TensorDict
        >>> policy = TinyVLA(action_dim=7, chunk_size=4)
        >>> data = TensorDict(
        ...     {
        ...         "observation": {
        ...             "image": torch.zeros(2, 3, 16, 16, dtype=torch.uint8),
        ...             "state": torch.zeros(2, 5),
        ...         },
        ...         "language_instruction": NonTensorStack("pick", "place"),
        ...     },
        ...     batch_size=[2],
        ... )
        >>> policy(data)["action_chunk"].shape
        torch.Size([2, 4, 7])
    """

    def __init__(
        self,
        *,
        action_dim: int,
        chunk_size: int,
        backbone: BackboneConfig = BackboneConfig(),
        keys: ObservationKeys = ObservationKeys(),
        instructions: InstructionTable | None = None,
    ) -> None:
        keys = keys_read(keys, backbone)
        super().__init__(action_dim=action_dim, chunk_size=chunk_size, keys=keys)
        self.backbone = TinyBackbone(chunk_size * action_dim, backbone, keys)
        self.instructions = instructions

    def to_stochastic(
        self, *, initial_std: float = 0.2, flow_noise: float = 0.5
    ) -> TinyGaussianVLA:
        """Return a Gaussian policy with these weights, copied."""
        return TinyGaussianVLA.from_cloned(self, StdConfig(initial=initial_std))

    def predict_chunk(self, tensordict: TensorDictBase) -> Tensor:
        """Return the chunk, ``[*B, H, A]``."""
        flat = self.backbone(tensordict)
        return flat.unflatten(-1, (self.chunk_size, self.action_dim))


class TinyTokenVLA(TinyPolicy, TokenVLAWrapper):
    """Predict a chunk of action tokens from images, state and an instruction.

    :class:`TinyVLA` with one categorical distribution per action dimension and step
    in place of a number. **Reads** what TinyVLA reads; **writes** ``action_tokens``,
    ``log_probs`` and the decoded ``action_chunk``.

    Keyword Args:
        action_dim: ``A``.
        chunk_size: ``H``.
        action_tokenizer: gives the vocabulary and decodes.
        sampling: temperature and truncation; see :class:`TokenVLAWrapper`.
        allowed_tokens: bool ``[V]`` or ``[A, V]``, True = may be sampled.
        backbone: sizes, cameras and image sizes.
        keys: observation entries that the policy reads.
        instructions: table for instruction ids; text needs none.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_vla.tokenizers import UniformActionTokenizer
        >>> tokenizer = UniformActionTokenizer(16, low=-1.0, high=1.0)
        >>> policy = TinyTokenVLA(
        ...     action_dim=2,
        ...     chunk_size=4,
        ...     action_tokenizer=tokenizer,
        ...     backbone=BackboneConfig(cameras=()),
        ... )
        >>> data = TensorDict(
        ...     observation=TensorDict(state=torch.zeros(5)),
        ...     language_instruction="pick",
        ... )
        >>> policy(data)["action_tokens"].shape, data["log_probs"].shape
        (torch.Size([4, 2]), torch.Size([]))
    """

    def __init__(
        self,
        *,
        action_dim: int,
        chunk_size: int,
        action_tokenizer: ActionTokenizerBase,
        sampling: TokenSampling | None = None,
        allowed_tokens: Tensor | None = None,
        backbone: BackboneConfig = BackboneConfig(),
        keys: ObservationKeys = ObservationKeys(),
        instructions: InstructionTable | None = None,
    ) -> None:
        keys = keys_read(keys, backbone)
        super().__init__(
            action_dim=action_dim,
            chunk_size=chunk_size,
            action_tokenizer=action_tokenizer,
            sampling=sampling,
            allowed_tokens=allowed_tokens,
            keys=keys,
        )
        out_dim = chunk_size * action_dim * self.vocab_size
        self.backbone = TinyBackbone(out_dim, backbone, keys)
        self.instructions = instructions

    @property
    def config(self) -> dict[str, object]:
        """The constructor's arguments, ``sampling`` as it is now."""
        return {
            **super().config,
            "action_tokenizer": self.action_tokenizer,
            "sampling": self.sampling,
            "allowed_tokens": self.allowed_tokens,
        }

    def predict_logits(self, tensordict: TensorDictBase) -> Tensor:
        """Return unnormalized log-probabilities, ``[*B, H, A, V]``."""
        shape = (self.chunk_size, self.action_dim, self.vocab_size)
        return self.backbone(tensordict).unflatten(-1, shape)
