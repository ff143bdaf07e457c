"""Metadata that policies and environments declare, and their meeting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tensordict import TensorDictBase, is_tensor_collection, unravel_key
from torch import nn
from torchrl.envs import EnvBase, TransformedEnv
from torchrl.envs.batched_envs import BatchedEnvBase

from torchrl_vla.errors import IncompatibleMetadataError, SchemaError
from torchrl_vla.schema.compatibility import (
    acting_differences,
    differences,
    refuse_differences,
)
from torchrl_vla.schema.keys import IMAGE_KEY
from torchrl_vla.schema.metadata import RobotDatasetMetadata

_ATTRIBUTE = "training_metadata"


def metadata_of(policy: nn.Module) -> RobotDatasetMetadata | None:
    """Return the metadata of a policy's or executor's training data.

    Training, ``ModelSpace`` and checkpoints mark the policy with them. Without a mark
    they are the policy's own ``metadata``, less the cameras, which LeRobot's policies
    pair by name themselves. None = nothing is declared.
    """
    marked = getattr(policy, _ATTRIBUTE, None)
    if marked is not None:
        return marked
    own = _record(getattr(policy, "metadata", None))
    return None if own is None else own.without_images()


def mark_metadata(policy: nn.Module, metadata: RobotDatasetMetadata) -> None:
    """Mark a policy with the metadata of the data that it is trained on.

    Args:
        policy: any module; of a compiled one the module inside is marked.
        metadata: of the data.

    Raises:
        IncompatibleMetadataError: the policy is marked with others; lists what differs.
    """
    known = metadata_of(policy)
    if known is not None:
        found = differences(known, metadata)
        try:
            refuse_differences(type(policy).__name__, known, metadata, found)
        except IncompatibleMetadataError as error:
            raise IncompatibleMetadataError(
                f"{error} To train the policy anew for these data, set "
                f"policy.{_ATTRIBUTE} = None."
            ) from None
    setattr(getattr(policy, "_orig_mod", policy), _ATTRIBUTE, metadata)


def environment_metadata(env: EnvBase) -> RobotDatasetMetadata | None:
    """Return what an environment declares, with the image sizes of its specs.

    Of an environment with a conversion appended, that of the converted data. Of a
    ``SerialEnv``, that of the first. None = nothing, as of a ``ParallelEnv`` until its
    ``metadata`` is set.
    """
    base, converted = env, None
    while isinstance(base, TransformedEnv):
        for transform in reversed(getattr(base.transform, "transforms", ())):
            converted = converted or _record(vars(transform).get("metadata"))
        base = base.base_env
    match base:
        case BatchedEnvBase() if base.is_closed:
            base.start()  # its workers hold the attributes
    declared = getattr(env, "metadata", None)
    match declared:
        case [first, *_]:
            declared = first
    record = converted or _record(declared)
    if record is None:
        return None
    found = [unravel_key(key) for key in env.observation_spec.keys(True, True)]
    sizes = {
        None if key == IMAGE_KEY else key[-1]: env.observation_spec[key].shape[-3:]
        for key in found
        if key == IMAGE_KEY or key[:-1] == IMAGE_KEY
    }
    return with_image_sizes(record, sizes)


def check_meeting(caller: str, policy: nn.Module, env: EnvBase) -> None:
    """Refuse a policy in an environment of another robot, rate, convention or image.

    Compared is what both sides declare; image sizes and cameras only for a policy that
    reads images.

    Args:
        caller: opens the error message.
        policy: or its executor.
        env: where it acts.

    Raises:
        IncompatibleMetadataError: lists every difference, with both values.
    """
    trained, robot = metadata_of(policy), environment_metadata(env)
    if trained is not None and robot is not None:
        keys = [unravel_key(key) for key in getattr(policy, "in_keys", ())]
        if not any(key == IMAGE_KEY or key[:2] == IMAGE_KEY for key in keys):
            trained = trained.without_images()
        check_robot_metadata(caller, trained, robot)


def check_robot_metadata(
    caller: str, trained: RobotDatasetMetadata, robot: RobotDatasetMetadata
) -> None:
    """Refuse training data whose actions are wrong for a robot.

    Args:
        caller: opens the error message.
        trained: of the data.
        robot: of the environment or robot that acts.

    Raises:
        IncompatibleMetadataError: lists every difference, with both values.
    """
    refuse_differences(caller, trained, robot, acting_differences(trained, robot))


def with_image_sizes(
    metadata: RobotDatasetMetadata, sizes: Mapping[str | None, tuple[int, ...]]
) -> RobotDatasetMetadata:
    """Return metadata with the sizes of images that were seen.

    Args:
        metadata: of a dataset or environment.
        sizes: ``(C, h, w)`` of each camera; None = one image without a name.
    """
    order: tuple[str | None, ...] = metadata.cameras
    if not order or len(sizes) == len(order) == 1:
        order = tuple(sorted(sizes, key=str))
    if not sizes or set(order) != set(sizes):  # names that do not pair say nothing
        return replace(metadata, image_sizes=None)
    channels_first = (tuple(map(int, sizes[name])) for name in order)
    return replace(metadata, image_sizes=tuple((c, h, w) for c, h, w in channels_first))


def check_image_sizes(
    caller: str, tensordict: TensorDictBase, metadata: RobotDatasetMetadata | None
) -> None:
    """Refuse images of another size than those of the training.

    Args:
        caller: opens the error message.
        tensordict: with images ``[*B, C, h, w]`` at ``("observation", "image")``.
        metadata: of the training data; None = unknown.

    Raises:
        SchemaError: an image has other channels, height or width.
    """
    if metadata is None or metadata.image_sizes is None:
        return
    images = tensordict.get(IMAGE_KEY, None)
    if images is None:
        return
    named = {metadata.cameras[0] if metadata.cameras else "image": images}
    if is_tensor_collection(images):
        names = metadata.cameras or tuple(sorted(images.keys()))
        named = {name: images.get(name, None) for name in names}
    if len(named) != len(metadata.image_sizes):
        return
    for (name, image), size in zip(named.items(), metadata.image_sizes, strict=True):
        if image is not None and tuple(image.shape[-3:]) != size:
            raise SchemaError(
                f"{caller}: expected images [*B, C, h, w] with (C, h, w) = {size}, the "
                f"size that the policy was trained with, of {name!r} at {IMAGE_KEY!r}, "
                f"got {tuple(image.shape[-3:])}. Append torchrl.envs.transforms.Resize"
                f"({size[1]}, {size[2]}) to the environment, and CHW order if the "
                "channels come last."
            )


def _record(value: object) -> RobotDatasetMetadata | None:
    match value:
        case RobotDatasetMetadata():
            return value
    return None
