"""Transform between actions and tokens."""

from __future__ import annotations

from copy import deepcopy

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from torchrl.data import Categorical, Composite
from torchrl.envs import Transform

from torchrl_vla._internal.torchrl_spellings import torchrl_spellings
from torchrl_vla.schema import (
    ACTION_IS_PAD_KEY,
    ACTION_KEY,
    ACTION_TOKENS_KEY,
    MissingKeyError,
)
from torchrl_vla.tokenizers import ActionTokenizerBase, ChunkActionTokenizer
from torchrl_vla.transforms.placement import acts_in_environment


@torchrl_spellings(
    same={"mode": ("encode",)},
    instead={
        "mode": "TensorDictModule(tokenizer.decode, ['action_tokens'], ['action']) "
        "behind a policy, or this transform in an environment, where it decodes"
    },
)
class ActionTokenizerTransform(Transform):
    """Encode actions into tokens for the loss, decode a policy's tokens for the robot.

    On a replay buffer, sampled actions are encoded and what is written stays as it is;
    pass ``in_key="action_chunk"`` for the targets of a chunk policy. In an
    environment, the policy gives tokens, and the base environment gets the action they
    stand for; the action spec is that of the tokens. One tokenizer on both sides is
    what makes training and acting agree.

    A :class:`~torchrl_vla.tokenizers.ChunkActionTokenizer` makes a sequence of the
    whole chunk. Steps that are padded are filled with the last valid action before, so
    that what lies under the padding reaches no token.

    **Reads** ``action`` float ``[*B, A]`` or a chunk ``[*B, H, A]``, in the space that
    the tokenizer was built for, and, for sequences, where it is, ``action_is_pad`` bool
    ``[*B, H]``; **writes** ``action_tokens`` int64 of the same shape, or sequences
    ``[*B, L]``. In an environment it reads ``action_tokens`` and writes ``action``.

    Args:
        tokenizer: the code.

    Keyword Args:
        in_key: the continuous action or chunk.
        out_key: the tokens.

    Raises:
        TypeError: ``tokenizer`` is not an :class:`ActionTokenizerBase`.
        MissingKeyError: there is no action to encode, or no token to decode.
        TokenError: see the tokenizer.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_vla.tokenizers import UniformActionTokenizer
        >>> tokenizer = UniformActionTokenizer(256, low=-1.0, high=1.0)
        >>> data = TensorDict({"action": torch.tensor([[-1.0, 0.0, 1.0]])}, [1])
        >>> ActionTokenizerTransform(tokenizer)(data)["action_tokens"]
        tensor([[  0, 128, 255]])
    """

    def __init__(
        self,
        tokenizer: ActionTokenizerBase,
        *,
        in_key: NestedKey = ACTION_KEY,
        out_key: NestedKey = ACTION_TOKENS_KEY,
    ) -> None:
        if not isinstance(tokenizer, ActionTokenizerBase):
            raise TypeError(
                "ActionTokenizerTransform: expected an ActionTokenizerBase at argument "
                f"'tokenizer', got {type(tokenizer).__name__}."
            )
        # No forward keys: the specs of an environment's output do not change.
        super().__init__(in_keys_inv=[in_key], out_keys_inv=[out_key])
        self.tokenizer = tokenizer
        self._copies: dict[torch.device, ActionTokenizerBase] = {}

    @property
    def in_key(self) -> NestedKey:
        """Key of the continuous action."""
        return self.in_keys_inv[0]

    @property
    def out_key(self) -> NestedKey:
        """Key of the tokens."""
        return self.out_keys_inv[0]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Encode the actions of sampled data."""
        action = self._get(tensordict, self.in_key, "an action to encode")
        pad = tensordict.get(ACTION_IS_PAD_KEY, None)
        match self.tokenizer:
            case ChunkActionTokenizer() if pad is not None:
                action = _hold(action, pad)
        tensordict = tensordict.copy()  # buffer[:] hands out the storage itself
        tokens = self._tokenizer_on(action.device).encode(action)
        return tensordict.set(self.out_key, tokens)

    def _inv_call(self, tensordict: TensorDictBase) -> TensorDictBase:
        if not acts_in_environment(self):
            return tensordict  # written to a buffer
        tokens = self._get(tensordict, self.out_key, "tokens to decode")
        action = self._tokenizer_on(tokens.device).decode(tokens)
        return tensordict.set(self.in_key, action)

    def _tokenizer_on(self, device: torch.device) -> ActionTokenizerBase:
        """Return the tokenizer, or a copy where a policy took its own elsewhere.

        A policy on an accelerator shares its tokenizer with the transform of a buffer
        that stays on the CPU.
        """
        constant = next(self.tokenizer.buffers(), None)
        if constant is None or constant.device == device:
            return self.tokenizer
        if device not in self._copies:
            self._copies[device] = deepcopy(self.tokenizer).to(device)
        return self._copies[device]

    def _call(self, next_tensordict: TensorDictBase) -> TensorDictBase:
        return next_tensordict  # an environment's output has no action

    def _get(
        self, tensordict: TensorDictBase, key: NestedKey, what: str
    ) -> torch.Tensor:
        value = tensordict.get(key, None)
        if value is None:
            raise MissingKeyError(
                f"ActionTokenizerTransform: expected {what} at {key!r}, got nothing. "
                f"Available: {sorted(map(str, tensordict.keys(True, True)))}."
            )
        return value

    def transform_input_spec(self, input_spec: Composite) -> Composite:
        """Replace the continuous action by the tokens that the policy gives."""
        input_spec = input_spec.clone()
        actions = input_spec["full_action_spec"]
        in_key, out_key = unravel_key(self.in_key), unravel_key(self.out_key)
        if in_key not in actions.keys(True, True):
            raise MissingKeyError(
                f"ActionTokenizerTransform: expected {in_key!r} in the environment's "
                f"action spec, got {list(actions.keys(True, True))}. Pass its key as "
                "in_key."
            )
        leaf = actions[in_key]
        # A dynamic size (-1, the chunk of MultiAction) cannot be constructed, only
        # expanded to.
        shape = leaf.shape
        match self.tokenizer:
            case ChunkActionTokenizer():
                shape = torch.Size((*shape[:-2], self.tokenizer.sequence_length))
        sizes = [max(size, 1) for size in shape]
        tokens = Categorical(
            self.tokenizer.vocab_size,
            shape=sizes,
            device=leaf.device,
            dtype=torch.int64,
        )
        if in_key != out_key:
            del actions[in_key]
        actions[out_key] = tokens if -1 not in shape else tokens.expand(shape)
        input_spec["full_action_spec"] = actions
        return input_spec

    def __repr__(self) -> str:
        return f"ActionTokenizerTransform({self.in_key!r} -> {self.out_key!r})"


def _hold(chunk: torch.Tensor, pad: torch.Tensor) -> torch.Tensor:
    """Fill padded steps of chunks ``[*B, H, A]`` with the last valid action before."""
    place = torch.arange(pad.shape[-1], device=pad.device)
    last = torch.where(pad, 0, place).cummax(-1).values
    return chunk.take_along_dim(last.unsqueeze(-1), -2)
