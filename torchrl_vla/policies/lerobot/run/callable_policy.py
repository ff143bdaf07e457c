"""Objects that are not LeRobot's and map its batches to chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tensordict import TensorDictBase
from torch import Tensor

from torchrl_vla.policies.lerobot.run.input_reader import InputReader
from torchrl_vla.policies.lerobot.run.inputs import (
    cameras_of,
    to_policy_image,
    to_policy_state,
)

PredictFunction = Callable[[Any, dict[str, Any]], Tensor]


class ObjectPolicy:
    """Ask an object for chunks; it is called as it is.

    Args:
        policy: has ``predict_action_chunk(batch)``, or is callable on a batch.
        predict_fn: ``(policy, batch) -> chunk``, for another interface.

    Keyword Args:
        reader: looks the inputs up.
        camera_name: what one image without a camera's name is called.

    Raises:
        TypeError: the policy can neither predict a chunk nor be called.
    """

    def __init__(
        self,
        policy: Any,
        predict_fn: PredictFunction | None,
        *,
        reader: InputReader,
        camera_name: str,
    ) -> None:
        self.policy = policy
        self.predict_fn = predict_fn or _default_predict_fn(policy)
        self.reader = reader
        self.camera_name = camera_name

    def ask(self, tensordict: TensorDictBase) -> tuple[Tensor, None]:
        """Return the object's chunks."""
        return self.predict_fn(self.policy, self.make_batch(tensordict)), None

    def make_batch(self, tensordict: TensorDictBase) -> dict[str, Any]:
        """Return the LeRobot batch of a tensordict, its batch dimensions flattened."""
        reader, size = self.reader, tensordict.batch_size
        batch: dict[str, Any] = {}
        if reader.state_key is not None:
            name, state = "observation.state", reader.read(tensordict, reader.state_key)
            batch[name] = to_policy_state(state, name, None, size)
        if reader.image_key is not None:
            images = cameras_of(reader.read(tensordict, reader.image_key))
            for name, image in images.items():
                if name == "observation.image":
                    name = f"observation.images.{self.camera_name}"
                batch[name] = to_policy_image(image, name, None, size)
        batch["task"] = reader.texts(tensordict)
        return batch


def _default_predict_fn(policy: Any) -> PredictFunction:
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
