"""Checks of LeRobotPolicyWrapper's arguments and of the chunk that it returns."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from torchrl_vla._internal.torchrl_spellings import torchrl_spellings
from torchrl_vla.policies.lerobot.load.pipeline import LeRobotPipeline
from torchrl_vla.policies.lerobot.run.policy_adapter import PolicyAdapter
from torchrl_vla.schema import (
    ACTION_CHUNK_KEY,
    STATE_KEY,
    ObservationKeys,
    SchemaError,
    check_actions,
)

_CALLER = "LeRobotPolicyWrapper"
_CAMERAS = (
    "Its configuration names its cameras: pair them with rename_map={'<robot camera>': "
    "'<policy camera>'}."
)
_STATES = "Its configuration says which states it reads: leave it out."
#: TorchRL's arguments of the class of the same name.
takes_torchrls_arguments = torchrl_spellings(
    same={"input_mode": ("canonical",), "output_mode": (None,), "inplace": (True,)},
    instead={
        "input_mode": "data in the canonical schema",
        "output_mode": "none: it writes action_chunk",
        "inplace": "policy(data.copy()), where the input must not change",
    },
)
#: What to do instead of an argument that has no effect on a checkpoint.
_NO_EFFECT = {
    "pipeline": "The checkpoint has its own: pass rename_map, empty_cameras, dtype or "
    "processor_overrides.",
    "camera_name": _CAMERAS,
    "use_state": _STATES,
}


def check_callable_arguments(
    policy: object,
    pipeline: LeRobotPipeline | None,
    keys: ObservationKeys,
    camera_name: str,
    use_state: bool,
) -> None:
    """Refuse arguments without effect for an object that is called with the batch.

    Raises:
        ValueError: there is a pipeline, a name for an image that is not read, or a key
            of a state that is not read.
    """
    if pipeline is not None:
        raise ValueError(
            f"{_CALLER}: expected no pipeline for {type(policy).__name__}, which is "
            "called with the batch as it is, got one, whose processors, cameras and "
            "dtype would have no effect. Leave it out and call processors in "
            "predict_fn."
        )
    if keys.image is None and camera_name != "image":
        raise ValueError(
            f"{_CALLER}: expected no camera_name beside image_key=None, got "
            f"{camera_name!r}. Leave one out."
        )
    if not use_state and keys.state not in (None, STATE_KEY):
        raise ValueError(
            f"{_CALLER}: expected no state_key beside use_state=False, got "
            f"{keys.state!r}. Leave one out."
        )


def check_predict_fn(predict_fn: object) -> None:
    """Refuse what cannot be called.

    Raises:
        TypeError: it is neither a callable nor None.
    """
    if predict_fn is not None and not callable(predict_fn):
        raise TypeError(
            f"{_CALLER}: expected a function (policy, batch) -> chunk at argument "
            f"'predict_fn', got {type(predict_fn).__name__}."
        )


def check_pretrained_arguments(
    adapter: PolicyAdapter,
    sizes: tuple[int | None, int | None],
    camera_name: str,
    use_state: bool,
) -> None:
    """Refuse arguments that have no effect on a policy of LeRobot's.

    Raises:
        ValueError: a size ``(H, A)`` is not the policy's, or another argument is not
            its default.
    """
    read = {"chunk_size": adapter.chunk_size, "action_dim": adapter.action_dim}
    for (name, size), given in zip(read.items(), sizes, strict=True):
        if given not in (None, size):
            raise ValueError(
                f"{_CALLER}: expected {name}={size}, as the policy's configuration "
                f"says, got {given}. Leave it out."
            )
    if camera_name != "image":
        raise ValueError(
            f"{_CALLER}: expected no camera_name for {adapter.name}, got "
            f"{camera_name!r}. {_CAMERAS}"
        )
    if not use_state:
        raise ValueError(
            f"{_CALLER}: expected no use_state for {adapter.name}, got False. {_STATES}"
        )


def check_loading_arguments(options: Mapping[str, object]) -> None:
    """Refuse arguments that have no effect on a checkpoint, before it is loaded.

    Raises:
        ValueError: names the argument and what to do.
    """
    for name, instead in _NO_EFFECT.items():
        if name in options:
            raise ValueError(
                f"{_CALLER}.from_pretrained: expected no {name} beside a checkpoint, "
                f"got {options[name]!r}. {instead}"
            )


def check_chunk(chunk: object, expected: tuple[int, ...], name: str) -> Tensor:
    """Return a chunk ``[N, H, A]``; ``name`` is the wrapped class, for the error.

    Raises:
        SchemaError: it is no finite float tensor of the expected shape.
    """
    if not isinstance(chunk, Tensor):
        got = type(chunk).__name__
    elif chunk.shape != expected or not chunk.is_floating_point():
        got = f"{chunk.dtype} {list(chunk.shape)}"
    else:
        check_actions(_CALLER, ACTION_CHUNK_KEY, chunk, expected[:1], expected[1:])
        return chunk
    raise SchemaError(
        f"{_CALLER}: expected a float chunk [B, H, A] = {list(expected)} from {name}, "
        f"got {got}. Pass predict_fn=lambda policy, batch: ... to call it another way, "
        "or build the wrapper with its chunk_size and action_dim."
    )
