"""Inputs that a LeRobot policy's configuration declares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tensordict import NestedKey

from torchrl_vla.policies.lerobot.lerobot_types import Config, optional_field
from torchrl_vla.policies.lerobot.load.pipeline import LeRobotPipeline
from torchrl_vla.policies.lerobot.load.processor_checks import state_size
from torchrl_vla.policies.lerobot.registry import PolicyKind
from torchrl_vla.policies.lerobot.run.observation_batch import full_camera_name
from torchrl_vla.schema import (
    ENVIRONMENT_STATE_KEY,
    HISTORY_KEY,
    IMAGE_KEY,
    INSTRUCTION_KEY,
    OBSERVATION_KEY,
    STATE_KEY,
    ObservationKeys,
    SchemaError,
)
from torchrl_vla.schema.lerobot_names import to_canonical

_CALLER = "LeRobotPolicyWrapper"
_STATE, _ENVIRONMENT_STATE = "observation.state", "observation.environment_state"
#: The policies to which LeRobot shows a blank image where a camera is missing.
_FILL_ABSENT_CAMERAS = ("smolvla", "pi0", "pi05")


@dataclass(frozen=True)
class PolicyInputs:
    """Declare what a LeRobot policy reads.

    Args:
        images: size ``(C, h, w)`` of each camera, by LeRobot's name.
        states: size of each state vector, by LeRobot's name.
        history_size: observations that it reads, the current one included.
        resizes_images: True = it brings images of any size to its own.
        reads_text: True = it follows the instruction.
    """

    images: Mapping[str, tuple[int, ...]]
    states: Mapping[str, int]
    history_size: int
    resizes_images: bool
    reads_text: bool

    @classmethod
    def from_config(
        cls, config: Config, kind: PolicyKind, pipeline: LeRobotPipeline
    ) -> PolicyInputs:
        """Read them from a policy's configuration.

        Args:
            config: of the policy.
            kind: the facts about its type.
            pipeline: says which of the policy's cameras the robot does not have.

        Raises:
            SchemaError: an absent camera is none of the policy's, or the policy needs
                all its cameras; an input has no place in the schema.
            ValueError: cameras are renamed for a policy without any.
        """
        images, states = {}, {}
        for name, feature in config.input_features.items():
            feature_type, size = feature.type.value, tuple(feature.shape)
            if feature_type == "VISUAL":
                images[name] = size
            elif to_canonical(name) in (STATE_KEY, ENVIRONMENT_STATE_KEY):
                states[name] = size[0]
            elif feature_type != "LANGUAGE":
                raise SchemaError(
                    f"{_CALLER}: expected images, {_STATE!r} and "
                    f"{_ENVIRONMENT_STATE!r} as the policy's inputs, got {name!r} of "
                    f"type {feature_type}. Pass predict_fn, which feeds it."
                )
        if _STATE in states:
            states[_STATE] = state_size(config, pipeline)
        absent = pipeline.empty_cameras
        _check_absent(absent, images, config.type)
        if pipeline.rename_map and not images:
            raise ValueError(
                f"{_CALLER}: expected no rename_map for a policy of type "
                f"{config.type!r} that reads no image, got {pipeline.rename_map}. "
                "Leave it out."
            )
        for name in absent:
            del images[full_camera_name(name)]
        # Stand-ins that LeRobot adds by `config.empty_cameras` and fills itself.
        for index in range(optional_field(config, "empty_cameras", 0)):
            images.pop(f"observation.images.empty_camera_{index}", None)
        return cls(
            images,
            states,
            config.n_obs_steps,
            kind.resizes_images(config),
            kind.reads_text,
        )

    def keys_from(self, given: ObservationKeys, policy: str) -> ObservationKeys:
        """Return the keys that the policy reads, in the history if it reads one.

        Args:
            given: by the user.
            policy: its name, for the error.

        Raises:
            ValueError: there is a key for an input that the policy does not read, or
                none for one that it reads.
        """
        read = {
            "image": bool(self.images),
            "state": _STATE in self.states,
            "instruction": self.reads_text,
        }
        defaults = {"image": IMAGE_KEY, "state": STATE_KEY}
        defaults["instruction"] = INSTRUCTION_KEY
        keys: dict[str, NestedKey | None] = {}
        for name, is_read in read.items():
            key = vars(given)[name]
            if is_read and key is None:
                raise ValueError(
                    f"{_CALLER}: expected {name}_key=... for {policy}, whose "
                    f"configuration reads {sorted({**self.images, **self.states})}"
                    f"{' and a task' * self.reads_text}, got None. Name its key."
                )
            if not is_read and key not in (None, defaults[name]):
                raise ValueError(
                    f"{_CALLER}: expected no {name}_key for {policy}, whose "
                    f"configuration reads no {name}, got {key!r}. Leave it out."
                )
            keys[name] = key if is_read else None
        keys["image"] = self._in_history(keys["image"])
        keys["state"] = self._in_history(keys["state"])
        return ObservationKeys(**keys)

    @property
    def environment_state_key(self) -> NestedKey | None:
        """The key of the simulator's state; None = not read."""
        if _ENVIRONMENT_STATE not in self.states:
            return None
        return self._in_history(ENVIRONMENT_STATE_KEY)

    def missing_input_hint(self, policy: str) -> str:
        """Return what to do when an input is missing."""
        if self.history_size == 1:
            return f"{policy} was trained with it: name its key."
        return (
            f"The policy reads {self.history_size} observations: append "
            "policy.make_environment_transform() to the environment, or "
            f"ObservationHistory({self.history_size}, storage=...) to the buffer."
        )

    def _in_history(self, key: NestedKey | None) -> NestedKey | None:
        if key is None or self.history_size == 1:
            return key
        path = (key,) if isinstance(key, str) else key
        return (HISTORY_KEY, *path[1:]) if path[0] == OBSERVATION_KEY else key


def _check_absent(
    absent: Sequence[str], images: Mapping[str, tuple[int, ...]], policy_type: str
) -> None:
    unknown = [name for name in absent if full_camera_name(name) not in images]
    if unknown:
        raise SchemaError(
            f"{_CALLER}: expected some of the policy's cameras {sorted(images)} at "
            f"argument 'empty_cameras', got {unknown}."
        )
    if absent and policy_type not in _FILL_ABSENT_CAMERAS:
        raise SchemaError(
            f"{_CALLER}: expected every camera of a policy of type {policy_type!r}, "
            f"which cannot do without one, got empty_cameras={list(absent)}. Only "
            f"{list(_FILL_ABSENT_CAMERAS)} have a stand-in."
        )
