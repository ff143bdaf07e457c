"""Checks of a tensordict against the canonical schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from tensordict import (
    NestedKey,
    TensorDictBase,
    is_non_tensor,
    is_tensor_collection,
    unravel_key,
)
from torch import Tensor

from torchrl_vla._internal.torchrl_spellings import torchrl_spellings
from torchrl_vla.errors import ArgumentTypeError, SchemaError
from torchrl_vla.schema.instructions import instruction_texts, is_text
from torchrl_vla.schema.keys import (
    ACTION_CHUNK_KEY,
    ACTION_IS_PAD_KEY,
    ACTION_KEY,
    ACTION_TOKENS_KEY,
    ENVIRONMENT_STATE_KEY,
    IMAGE_CHANNELS,
    IMAGE_IS_STALE_KEY,
    IMAGE_KEY,
    INSTRUCTION_KEY,
    LOG_PROBS_KEY,
    STATE_KEY,
)
from torchrl_vla.schema.metadata import RobotDatasetMetadata

_TOKEN_DTYPES = (torch.int64, torch.int32, torch.int16, torch.uint8)


def check_tensordict(caller: str, tensordict: TensorDictBase) -> None:
    """Refuse what is no tensordict, such as a dict of arrays.

    Args:
        caller: opens the error message.
        tensordict: what was passed for it.

    Raises:
        ArgumentTypeError: it is something else; says how to convert it.
    """
    if not isinstance(tensordict, TensorDictBase):
        raise ArgumentTypeError(
            f"{caller}: expected a tensordict, got {type(tensordict).__name__}. "
            "Convert a dict of arrays with TensorDict(observations, batch_size=[N]), "
            "its entries named as in the schema."
        )


@torchrl_spellings(
    same={"check_finite": (True,)},
    instead={"check_finite": "raise_on_error=False, and pass over what is not finite"},
)
def validate_vla_tensordict(
    tensordict: TensorDictBase,
    *,
    metadata: RobotDatasetMetadata | None = None,
    instruction_key: NestedKey = INSTRUCTION_KEY,
    action_key: NestedKey = ACTION_KEY,
    image_key: NestedKey = IMAGE_KEY,
    state_key: NestedKey = STATE_KEY,
    require_instruction: bool = True,
    require_action: bool = True,
    require_perception: bool = True,
    raise_on_error: bool = True,
) -> list[str]:
    """List every way in which a tensordict breaks the canonical schema.

    The checks read values (finiteness, ranges, text), so call it where data enters,
    not on a hot path. A padding mask that marks the frame itself as padded is
    reported, because that is what a mask of the opposite polarity looks like.

    **Reads** whatever canonical keys are there; **writes** nothing.

    Args:
        tensordict: data of batch size ``[*B]`` (``[*B, T]`` with time).
        metadata: when given, dimensions and cameras must be the ones it declares.
        instruction_key: see :mod:`torchrl_vla.schema.keys`; so are the next three.
        action_key: one executed action, ``[*B, A]``.
        image_key: one image or a sub-tensordict of cameras.
        state_key: proprioception.
        require_instruction: True = a missing instruction is a violation.
        require_action: True = a missing action is one (an action chunk or tokens
            stand in for it).
        require_perception: True = image and state both missing is one.
        raise_on_error: False = return the violations and raise nothing.

    Returns:
        One sentence per violation; empty for valid data.

    Raises:
        SchemaError: there are violations and ``raise_on_error`` is True.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> data = TensorDict(
        ...     {
        ...         "observation": {"image": torch.zeros(2, 8, 8, 3)},
        ...         "action": torch.zeros(2),
        ...     },
        ...     [2],
        ... )
        >>> for line in validate_vla_tensordict(data, raise_on_error=False):
        ...     print(line)
        expected an instruction at 'language_instruction', got nothing
        expected CHW images [*B, C, h, w] at ('observation', 'image'), got HWC \
(2, 8, 8, 3); permute them
        expected [*B, A] with an action dimension at 'action', got (2,)
    """
    check = _Check(tensordict, metadata)
    found = list(check.instruction(instruction_key, require_instruction))
    perception = (image_key, state_key, ENVIRONMENT_STATE_KEY)
    if require_perception and not any(map(check.has, perception)):
        found.append(f"expected an image at {image_key!r} or a state at {state_key!r}")
    found += check.images(image_key)
    found += check.vector(state_key, "S", "state_dim", "a state dimension")
    found += check.vector(ENVIRONMENT_STATE_KEY, "E", None, "a state dimension")
    found += check.vector(action_key, "A", "action_dim", "an action dimension")
    found += check.chunk()
    found += check.tokens()
    stand_ins = (action_key, ACTION_CHUNK_KEY, ACTION_TOKENS_KEY)
    if require_action and not any(map(check.has, stand_ins)):
        found.append(f"expected an action at one of {stand_ins}, got nothing")
    found += check.blocked.values()
    if found and raise_on_error:
        raise SchemaError(
            f"validate_vla_tensordict: expected canonical data of batch size "
            f"{tuple(tensordict.batch_size)}, got {len(found)} violation(s):\n  - "
            + "\n  - ".join(found)
        )
    return found


def check_images_are_fresh(caller: str, tensordict: TensorDictBase) -> None:
    """Refuse frames whose images are stale.

    An environment that renders on demand repeats the last image between two decisions,
    while the robot moves. For components that store or train on every frame.

    **Reads** ``image_is_stale`` bool ``[*B, 1]``; without it every image is fresh.

    Args:
        caller: opens the error message.
        tensordict: the frames.

    Raises:
        SchemaError: an image is stale.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> frames = TensorDict(image_is_stale=torch.tensor([[False], [True]]))
        >>> check_images_are_fresh("collect", frames)
        Traceback (most recent call last):
        ...
        torchrl_vla.errors.SchemaError: collect: expected images of their own \
step, got 'image_is_stale' True in 1 of 2 frames. Make the environment with \
render_on_demand=False to record or train on every frame, or keep only the decisions.
    """
    is_stale = tensordict.get(IMAGE_IS_STALE_KEY, None)
    if is_stale is None or not bool(is_stale.any()):
        return
    raise SchemaError(
        f"{caller}: expected images of their own step, got "
        f"{IMAGE_IS_STALE_KEY!r} True in {int(is_stale.sum())} of {is_stale.numel()} "
        "frames. Make the environment with render_on_demand=False to record or train "
        "on every frame, or keep only the decisions."
    )


class _Check:
    """The checks of one tensordict; each method yields its violations."""

    def __init__(
        self, tensordict: TensorDictBase, metadata: RobotDatasetMetadata | None
    ) -> None:
        self.data = tensordict
        self.metadata = metadata
        self.batch_dims = tensordict.ndim
        self.blocked: dict[NestedKey, str] = {}

    def has(self, key: NestedKey) -> bool:
        return self.read(key) is not None

    def read(self, key: NestedKey) -> Any:
        """Return an entry or None; a leaf above it is a violation, too."""
        value: Any = self.data
        path = (key,) if isinstance(key, str) else unravel_key(key)
        for depth, name in enumerate(path):
            if is_non_tensor(value) or not is_tensor_collection(value):
                above = path[0] if depth == 1 else path[:depth]
                self.blocked[above] = (
                    f"expected a sub-tensordict at {above!r}, which {key!r} is under, "
                    f"got {_kind(value)}"
                )
                return None
            value = value.get(name, None)
            if value is None:
                return None
        return value

    def tensor(self, key: NestedKey) -> Tensor | None:
        """Return a tensor or None; another kind of entry is a violation."""
        value = self.read(key)
        if value is not None and is_tensor_collection(value):
            self.blocked[key] = f"expected a tensor at {key!r}, got {_kind(value)}"
            return None
        return value

    def instruction(self, key: NestedKey, required: bool) -> Iterator[str]:
        value = self.read(key)
        if value is None:
            if required and key not in self.blocked:
                yield f"expected an instruction at {key!r}, got nothing"
        elif is_text(value):
            for text in instruction_texts(value):
                if not isinstance(text, str) or not text.strip():
                    yield f"expected an instruction with words at {key!r}, got {text!r}"
                    return
        elif is_tensor_collection(value):
            yield f"expected text, ids or tokens at {key!r}, got {_kind(value)}"
        elif value.ndim == self.batch_dims + 1 and value.shape[-1] > 1:
            if value.dtype not in _TOKEN_DTYPES:
                yield f"expected integer tokens [*B, L] at {key!r}, got {value.dtype}"
        elif value.dtype != torch.int64:
            yield f"expected text or int64 ids at {key!r}, got {value.dtype}"
        elif value.shape != self.data.batch_size:
            shape = tuple(value.shape)
            yield f"expected ids [*B] or tokens [*B, L] at {key!r}, got {shape}"

    def images(self, key: NestedKey) -> Iterator[str]:
        value = self.read(key)
        if value is None:
            return
        cameras: dict[NestedKey, Any] = {key: value}
        if is_tensor_collection(value) and not is_non_tensor(value):
            prefix = key if isinstance(key, tuple) else (key,)
            cameras = {(*prefix, name): image for name, image in value.items()}
            if self.metadata is not None and self.metadata.cameras:
                missing = sorted(set(self.metadata.cameras) - set(value.keys()))
                if missing:
                    yield f"expected cameras {missing} under {key!r}, got none of them"
            if not cameras:
                yield f"expected at least one camera under {key!r}, got none"
        for name, image in cameras.items():
            if is_tensor_collection(image):
                yield f"expected an image at {name!r}, got {_kind(image)}"
            else:
                yield from self._image(name, image)

    def _image(self, key: NestedKey, image: Tensor) -> Iterator[str]:
        shape = tuple(image.shape)
        if not (image.dtype == torch.uint8 or image.is_floating_point()):
            yield f"expected uint8 or float images at {key!r}, got {image.dtype}"
        if image.ndim != self.batch_dims + 3:
            yield f"expected images [*B, C, h, w] at {key!r}, got {shape}"
        elif shape[-3] not in IMAGE_CHANNELS and shape[-1] in IMAGE_CHANNELS:
            yield (
                f"expected CHW images [*B, C, h, w] at {key!r}, got HWC {shape}; "
                "permute them"
            )
        elif shape[-3] not in IMAGE_CHANNELS:
            yield f"expected 1, 3 or 4 channels at {key!r}, got {shape[-3]} in {shape}"
        if image.is_floating_point() and image.numel():
            low, high = image.min().item(), image.max().item()
            if not (low >= 0.0 and high <= 1.0):  # also catches NaN
                yield (
                    f"expected float images in [0, 1] at {key!r}, got values from "
                    f"{low:g} to {high:g}; divide by 255 or keep uint8"
                )

    def vector(
        self, key: NestedKey, letter: str, declared: str | None, missing: str
    ) -> Iterator[str]:
        value = self.tensor(key)
        if value is None:
            return
        yield from self._float(key, value)
        shape = tuple(value.shape)
        if value.ndim == self.batch_dims:
            yield f"expected [*B, {letter}] with {missing} at {key!r}, got {shape}"
        elif value.ndim != self.batch_dims + 1:
            yield f"expected [*B, {letter}] at {key!r}, got {shape}"
        else:
            yield from self._size(key, shape[-1], declared)

    def chunk(self) -> Iterator[str]:
        chunk = self.tensor(ACTION_CHUNK_KEY)
        if chunk is not None:
            yield from self._float(ACTION_CHUNK_KEY, chunk)
            shape = tuple(chunk.shape)
            if chunk.ndim != self.batch_dims + 2:
                yield f"expected [*B, H, A] at {ACTION_CHUNK_KEY!r}, got {shape}"
                chunk = None
            else:
                yield from self._size(ACTION_CHUNK_KEY, shape[-1], "action_dim")
        yield from self._pad_mask(chunk)

    def _pad_mask(self, chunk: Tensor | None) -> Iterator[str]:
        key, mask = ACTION_IS_PAD_KEY, self.tensor(ACTION_IS_PAD_KEY)
        if mask is None:
            return
        shape = tuple(mask.shape)
        if mask.dtype != torch.bool:
            yield f"expected bool (True = padded) at {key!r}, got {mask.dtype}"
        if mask.ndim != self.batch_dims + 1:
            yield f"expected [*B, H] at {key!r}, got {shape}"
        elif chunk is not None and mask.shape != chunk.shape[:-1]:
            yield (
                f"expected [*B, H] = {tuple(chunk.shape[:-1])} at {key!r}, got {shape}"
            )
        elif mask.dtype == torch.bool and mask.numel() and bool(mask[..., 0].any()):
            yield (
                f"expected position 0, the frame itself, never padded at {key!r}, got "
                "True there; True means padded, so the mask may be inverted"
            )

    def tokens(self) -> Iterator[str]:
        key, tokens = ACTION_TOKENS_KEY, self.tensor(ACTION_TOKENS_KEY)
        if tokens is not None:
            if tokens.dtype != torch.int64:
                yield f"expected int64 tokens at {key!r}, got {tokens.dtype}"
            if tokens.ndim not in (self.batch_dims + 1, self.batch_dims + 2):
                shape = tuple(tokens.shape)
                yield f"expected [*B, H, A] or [*B, L] at {key!r}, got {shape}"
        log_probs = self.tensor(LOG_PROBS_KEY)
        if log_probs is not None:
            yield from self._float(LOG_PROBS_KEY, log_probs)

    def _float(self, key: NestedKey, value: Tensor) -> Iterator[str]:
        if not value.is_floating_point():
            yield f"expected a float tensor at {key!r}, got {value.dtype}"
        elif not bool(value.isfinite().all()):
            where = (~value.isfinite()).nonzero()[0].tolist()
            yield f"expected finite values at {key!r}, got a non-finite one at {where}"

    def _size(self, key: NestedKey, size: int, declared: str | None) -> Iterator[str]:
        expected = declared and getattr(self.metadata, declared, None)
        if expected is not None and size != expected:
            yield f"expected {declared}={expected} at {key!r}, got {size}"


def _kind(value: Any) -> str:
    """Describe an entry of another kind than was expected."""
    if is_non_tensor(value):
        return f"non-tensor data {type(value).__name__}"
    if is_tensor_collection(value):
        return f"a sub-tensordict of {sorted(map(str, value.keys()))}"
    return f"a tensor {tuple(value.shape)} of {value.dtype}"
