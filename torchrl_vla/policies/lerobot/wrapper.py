"""A policy that speaks LeRobot's batch dictionaries, as a policy of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase, is_tensor_collection
from torch import Tensor

from torchrl_vla.policies.base import ContinuousVLAWrapper
from torchrl_vla.policies.image_range import check_image_range
from torchrl_vla.schema import (
    ACTION_CHUNK_KEY,
    IMAGE_KEY,
    INSTRUCTION_KEY,
    STATE_KEY,
    InstructionTable,
    MissingKeyError,
    SchemaError,
    UnknownInstructionError,
    instruction_texts,
    is_text,
)


class LeRobotPolicyWrapper(ContinuousVLAWrapper):
    """Wrap a policy object that maps a LeRobot batch to a chunk of actions.

    The batch is a dict of ``observation.state`` float ``[B, S]``,
    ``observation.images.<camera>`` float ``[B, C, h, w]`` in 0..1 (uint8 is divided by
    255 on the way) and ``task``, a list of ``B`` texts (ids are decoded). The policy is
    called as it is: it keeps its training mode and its gradients. The surprise:
    ``select_action`` is never called, since it serves one action from a queue that all
    environments would share; ``MultiStepActorWrapper`` does that per environment.

    **Reads** image(s) uint8, or float in 0..1, ``[*B, C, h, w]``; state float
    ``[*B, S]``; instruction, text or int64 ids ``[*B]``. **Writes** ``action_chunk``
    float ``[*B, H, A]``, as the policy returned it.

    Args:
        policy: object with ``predict_action_chunk(batch)``, or callable on a batch.

    Keyword Args:
        action_dim: ``A``.
        chunk_size: ``H``.
        predict_fn: ``(policy, batch) -> chunk [B, H, A]``, for another interface.
        camera_name: LeRobot's name of the camera where one image lies at
            ``image_key``; a sub-tensordict of cameras brings its own names.
        use_state: False = the policy reads no state.
        instructions: table that gives instruction ids their texts.
        chunk_key: where the chunk is written.
        image_key: image, or sub-tensordict of cameras; None = the policy does not look.
        state_key: proprioception.
        instruction_key: text, or ids.

    Raises:
        TypeError: the policy can neither predict a chunk nor be called.
        SchemaError: it returned anything but a float ``[B, H, A]``; or an image or
            state does not fit the batch size.
        MissingKeyError: an input is missing.
        UnknownInstructionError: an id is not in ``instructions``.

    Examples:
        >>> import torch
        >>> from tensordict import NonTensorStack, TensorDict
        >>> class DummyPolicy:
        ...     def predict_action_chunk(self, batch):
        ...         b = batch["observation.state"].shape[0]
        ...         return torch.zeros(b, 4, 7)
        >>> policy = LeRobotPolicyWrapper(DummyPolicy(), action_dim=7, chunk_size=4)
        >>> td = TensorDict(
        ...     {
        ...         "observation": {
        ...             "image": torch.zeros(2, 3, 16, 16),
        ...             "state": torch.zeros(2, 5),
        ...         },
        ...         "language_instruction": NonTensorStack("pick", "place"),
        ...     },
        ...     batch_size=[2],
        ... )
        >>> policy(td)["action_chunk"].shape
        torch.Size([2, 4, 7])
    """

    def __init__(
        self,
        policy: Any,
        *,
        action_dim: int,
        chunk_size: int,
        predict_fn: Callable[[Any, dict[str, Any]], Tensor] | None = None,
        camera_name: str = "image",
        use_state: bool = True,
        instructions: InstructionTable | None = None,
        chunk_key: NestedKey = ACTION_CHUNK_KEY,
        image_key: NestedKey | None = IMAGE_KEY,
        state_key: NestedKey = STATE_KEY,
        instruction_key: NestedKey = INSTRUCTION_KEY,
    ) -> None:
        super().__init__(
            action_dim=action_dim,
            chunk_size=chunk_size,
            chunk_key=chunk_key,
            image_key=image_key,
            state_key=state_key if use_state else None,
            instruction_key=instruction_key,
        )
        self.policy = policy
        self.predict_fn = predict_fn or _default_predict_fn(policy)
        self.camera_name = camera_name
        self.instructions = instructions

    def predict_chunk(self, tensordict: TensorDictBase) -> Tensor:
        """Return the policy's chunk for a batch of any leading dimensions."""
        batch = tensordict.batch_size
        chunk = self.predict_fn(self.policy, self.make_batch(tensordict))
        name = type(self.policy).__name__
        expected = (batch.numel(), self.chunk_size, self.action_dim)
        if not isinstance(chunk, Tensor):
            got = type(chunk).__name__
        elif chunk.shape != expected or not chunk.is_floating_point():
            got = f"{chunk.dtype} {list(chunk.shape)}"
        else:
            return chunk.reshape(*batch, self.chunk_size, self.action_dim)
        raise SchemaError(
            "LeRobotPolicyWrapper: expected a float chunk [B, H, A] = "
            f"{list(expected)} from {name}, got {got}. Pass predict_fn=lambda policy, "
            "batch: ... to call it another way, or build the wrapper with its "
            "chunk_size and action_dim."
        )

    def make_batch(self, tensordict: TensorDictBase) -> dict[str, Any]:
        """Return the LeRobot batch of a tensordict, its batch dimensions flattened."""
        batch: dict[str, Any] = {}
        size = tensordict.batch_size
        if self.state_key is not None:
            state = self._read(tensordict, self.state_key)
            self._check_batch(state, size, 1, self.state_key)
            batch["observation.state"] = state.reshape(size.numel(), -1)
        if self.image_key is not None:
            for camera, image in self._cameras(tensordict).items():
                self._check_batch(image, size, 3, self.image_key)
                check_image_range(image, "LeRobotPolicyWrapper")
                image = image.reshape(size.numel(), *image.shape[-3:])
                if image.dtype == torch.uint8:
                    image = image.to(torch.float32) / 255
                batch[f"observation.images.{camera}"] = image
        batch["task"] = self._texts(tensordict)
        return batch

    def _cameras(self, tensordict: TensorDictBase) -> dict[str, Tensor]:
        value = self._read(tensordict, self.image_key)
        if is_tensor_collection(value):
            return dict(value.items())
        return {self.camera_name: value}

    def _texts(self, tensordict: TensorDictBase) -> list[str]:
        value = self._read(tensordict, self.instruction_key)
        if not is_text(value):
            if self.instructions is None:
                raise UnknownInstructionError(
                    "LeRobotPolicyWrapper: expected a table for the instruction ids at "
                    f"{self.instruction_key!r}, got none. Pass instructions="
                    "env.instructions (or the dataset's)."
                )
            value = self.instructions.decode(value.flatten())
        texts = instruction_texts(value)
        if len(texts) != tensordict.batch_size.numel():
            raise SchemaError(
                "LeRobotPolicyWrapper: expected one instruction per row at "
                f"{self.instruction_key!r}, got {len(texts)} for a batch "
                f"{list(tensordict.batch_size)}."
            )
        return texts

    def _read(self, tensordict: TensorDictBase, key: NestedKey) -> Any:
        value = tensordict.get(key, None)
        if value is None:
            raise MissingKeyError(
                f"LeRobotPolicyWrapper: expected an input at {key!r}, got only "
                f"{sorted(map(str, tensordict.keys(True, True)))}. Name another key, "
                "or build the wrapper with image_key=None or use_state=False."
            )
        return value

    def _check_batch(
        self, value: Tensor, batch: torch.Size, event_dims: int, key: NestedKey
    ) -> None:
        if value.ndim != len(batch) + event_dims or value.shape[:-event_dims] != batch:
            letters = "S" if event_dims == 1 else "C, h, w"
            raise SchemaError(
                f"LeRobotPolicyWrapper: expected [*B, {letters}] with *B = "
                f"{list(batch)} at {key!r}, got {list(value.shape)}. *B is the "
                "tensordict's batch_size."
            )


def _default_predict_fn(policy: Any) -> Callable[[Any, dict[str, Any]], Tensor]:
    if callable(getattr(policy, "predict_action_chunk", None)):
        return _predict_action_chunk
    if callable(policy):
        return _call
    raise TypeError(
        "LeRobotPolicyWrapper: expected a policy with predict_action_chunk(batch), or "
        f"a callable, got {type(policy).__name__}. Pass predict_fn=lambda policy, "
        "batch: ..., which returns the chunk [B, H, A]. (select_action serves single "
        "actions from a queue that all environments would share.)"
    )


def _predict_action_chunk(policy: Any, batch: dict[str, Any]) -> Tensor:
    return policy.predict_action_chunk(batch)


def _call(policy: Any, batch: dict[str, Any]) -> Tensor:
    return policy(batch)
