"""Adapter of any object that maps LeRobot's batch dictionary to a chunk."""

from __future__ import annotations

from typing import Any

from tensordict import TensorDictBase

from torchrl_vla.policies.lerobot.lerobot_types import Batch, PredictFunction
from torchrl_vla.policies.lerobot.run.observation_batch import (
    ObservationReader,
    to_policy_image,
    to_policy_state,
)
from torchrl_vla.policies.lerobot.run.policy_adapter import PolicyAdapter
from torchrl_vla.policies.lerobot.run.pretrained_policy import PretrainedPolicy
from torchrl_vla.schema import InstructionTable, ObservationKeys, SchemaError

_HINT = "Name another key, or build the wrapper with image_key=None or use_state=False."


class CallablePolicy(PolicyAdapter):
    """Call an object with LeRobot's batch dictionary, without processors.

    Args:
        policy: has ``predict_action_chunk(batch)``, or is callable on a batch.
        predict_fn: ``(policy, batch) -> chunk``, for another interface.
        sizes: ``(H, A)``; None = missing.
        keys: of the inputs.
        camera_name: name of one image that is not in a sub-tensordict of cameras.
        instructions: table that gives instruction ids their texts.

    Raises:
        TypeError: the policy can neither predict a chunk nor be called.
        ValueError: a size is missing.
    """

    def __init__(
        self,
        policy: Any,
        predict_fn: PredictFunction | None,
        sizes: tuple[int | None, int | None],
        keys: ObservationKeys,
        camera_name: str,
        instructions: InstructionTable | None = None,
    ) -> None:
        name, (chunk_size, action_dim) = type(policy).__name__, sizes
        if action_dim is None or chunk_size is None:
            raise ValueError(
                f"LeRobotPolicyWrapper: expected action_dim and chunk_size for {name}, "
                f"got action_dim={action_dim}, chunk_size={chunk_size}. Only LeRobot's "
                "own policies declare their sizes."
            )
        reader = ObservationReader(keys, _HINT, instructions=instructions)
        super().__init__(name, action_dim, chunk_size, reader)
        self.policy = policy
        self.predict_fn = predict_fn or _default_predict_fn(policy)
        self.camera_name = camera_name

    def predict(self, tensordict: TensorDictBase) -> tuple[object, None]:
        """Return the object's chunks."""
        return self.predict_fn(self.policy, self.make_batch(tensordict)), None

    def as_pretrained(self, caller: str) -> PretrainedPolicy:
        """Raise: the object is no policy of LeRobot's."""
        raise SchemaError(
            f"{caller}: expected a policy of LeRobot's with its processors, got "
            f"{self.name}. Wrap one without predict_fn."
        )

    def make_batch(self, tensordict: TensorDictBase) -> Batch:
        """Return LeRobot's batch of a tensordict, its batch dimensions flattened."""
        reader, size = self.reader, tensordict.batch_size
        batch: Batch = {}
        for name, state in reader.states(tensordict).items():
            batch[name] = to_policy_state(state, name, None, size)
        for name, image in reader.images(tensordict).items():
            if name == "observation.image":
                name = f"observation.images.{self.camera_name}"
            batch[name] = to_policy_image(image, name, None, size)
        if reader.keys.instruction is not None:
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


def _predict_action_chunk(policy: Any, batch: Batch) -> Any:
    return policy.predict_action_chunk(batch)


def _call(policy: Any, batch: Batch) -> Any:
    return policy(batch)
