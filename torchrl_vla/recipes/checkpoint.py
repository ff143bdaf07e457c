"""A policy on disk with what is needed to act with it, and nothing to guess."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase, TransformedEnv

from torchrl_vla.execution import MultiStepActorWrapper
from torchrl_vla.policies import LeRobotPolicyWrapper, TinyVLA
from torchrl_vla.recipes.datasets import Demonstrations, image_sizes_of
from torchrl_vla.recipes.model_space import ModelSpace
from torchrl_vla.schema import (
    InstructionTable,
    RobotDatasetMetadata,
    SchemaError,
    import_extra,
)
from torchrl_vla.schema.lerobot_names import is_repo_id

_METADATA, _SPACE, _POLICY = "metadata.json", "model_space.json", "policy"
_LEROBOT = ("config.json", "pretrained_model")


def make_policy(
    dataset: Demonstrations,
    *,
    chunk_size: int,
    hidden: int = 256,
    depth: int = 2,
) -> TinyVLA:
    """Make an untrained TinyVLA that fits a dataset.

    Args:
        dataset: gives the sizes, the cameras and the instructions.
        chunk_size: ``H``.
        hidden: width of the trunk.
        depth: residual blocks of the trunk.
    """
    metadata = dataset.metadata
    cameras = tuple(image_sizes_of(dataset))
    return TinyVLA(
        action_dim=metadata.action_dim,
        chunk_size=chunk_size,
        state_dim=metadata.state_dim,
        cameras=None if cameras == (None,) else cameras,  # one image, not named
        instructions=dataset.instructions,
        hidden=hidden,
        depth=depth,
    )


def save_checkpoint(folder: Path | str, policy: TinyVLA, space: ModelSpace) -> Path:
    """Write the policy, its metadata with statistics, and its scaling mode."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    policy.to_folder(folder / _POLICY)
    (folder / _SPACE).write_text(json.dumps({"mode": space.mode}))
    (folder / _METADATA).write_text(space.metadata.to_json())
    return folder


def save_lerobot_checkpoint(
    folder: Path | str, policy: LeRobotPolicyWrapper, metadata: RobotDatasetMetadata
) -> Path:
    """Write a checkpoint that LeRobot loads, and what its numbers mean beside it.

    LeRobot's own files say sizes and statistics, but neither units nor names nor
    whether an action is a step or a target; ``metadata.json`` does, and
    :func:`load_actor` checks it.
    """
    folder = policy.save_pretrained(folder)
    (folder / _METADATA).write_text(metadata.to_json())
    return folder


def load_actor(
    source: Path | str,
    *,
    metadata: RobotDatasetMetadata,
    instructions: InstructionTable | None = None,
    replan_interval: int | None = None,
    **options: Any,
) -> MultiStepActorWrapper:
    """Load a checkpoint, ours or LeRobot's, as an actor for an environment or robot.

    A policy of LeRobot's that looks back, or goes on from its last plan, needs
    :func:`prepare_environment` around its environment.

    Args:
        source: a folder that ``torchrl-vla train`` or LeRobot wrote, or a repo id of
            the Hugging Face Hub.
        metadata: of where it will act; must be compatible with the training data. Of a
            LeRobot checkpoint only the sizes are known, unless ``metadata.json`` lies
            beside it; its cameras are paired by name. Names are not compared where the
            data declared neither units nor a reference of actions, as LeRobot's do.
        instructions: for a LeRobot policy that reads text, the table of the ids that it
            will be given: the environment's.
        replan_interval: actions to execute before asking again; None = the chunk, or
            what LeRobot executes of it (``n_action_steps``).
        options: for LeRobot checkpoints, of ``LeRobotPolicyWrapper.from_pretrained``,
            such as ``rename_map``, ``empty_cameras``, ``device`` and ``overrides``.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        MissingExtraError: it is LeRobot's, and ``lerobot`` is not installed.
        SchemaError: the folder is not a checkpoint, or only a part of one.
        IncompatibleMetadataError: lists what differs between training and acting.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir() and is_repo_id(source):
        owner = (
            f"load_actor, for the checkpoint {str(source)!r} of the Hugging Face Hub"
        )
        import_extra("lerobot", "lerobot", f"{owner} (there is no such folder)")
    elif not folder.is_dir():
        raise FileNotFoundError(
            f"load_actor: expected a checkpoint at {str(folder)!r}, got nothing. Write "
            "one with `torchrl-vla train`, or pass a repo id 'owner/name'."
        )
    is_ours = (folder / _SPACE).exists() or (folder / _POLICY).exists()
    if not is_ours and any((folder / name).exists() for name in _LEROBOT):
        source = folder
    elif folder.is_dir():
        return _load_ours(folder, metadata, replan_interval, options)
    policy = LeRobotPolicyWrapper.from_pretrained(
        source, instructions=instructions, **options
    )
    _trained_with(folder, policy).check_compatible(metadata)
    if replan_interval is None:
        replan_interval = policy.n_action_steps
    policy.eval()
    return MultiStepActorWrapper(policy, replan_interval=replan_interval)


def prepare_environment(
    env: EnvBase, actor: MultiStepActorWrapper | TensorDictModuleBase
) -> EnvBase:
    """Give an environment what an actor's policy has to carry from step to step.

    Policies of LeRobot's that look back find their history there, and TD-MPC its last
    plan. For every other policy the environment is returned as it is.

    Args:
        env: where it will act.
        actor: of :func:`load_actor`, or a policy.
    """
    policy = getattr(actor, "actor", actor)
    if not isinstance(policy, LeRobotPolicyWrapper):
        return env
    carried = policy.make_environment_transform()
    return TransformedEnv(env, carried) if len(carried) else env


def _load_ours(
    folder: Path,
    metadata: RobotDatasetMetadata,
    replan_interval: int | None,
    options: dict[str, Any],
) -> MultiStepActorWrapper:
    missing = [n for n in (_METADATA, _SPACE, _POLICY) if not (folder / n).exists()]
    if missing:
        raise SchemaError(
            f"load_actor: expected {[_METADATA, _SPACE, _POLICY]} in {str(folder)!r}, "
            f"got no {missing}. Pass the folder that `torchrl-vla train` wrote, or one "
            "of LeRobot's, which has 'config.json'."
        )
    if options:
        raise SchemaError(
            f"load_actor: expected no {sorted(options)} for {str(folder)!r}, a "
            "checkpoint of a TinyVLA, whose cameras go by their own names. They are "
            "for LeRobot's."
        )
    trained = RobotDatasetMetadata.from_json(folder / _METADATA)
    _what_it_means(trained).check_compatible(metadata)
    mode = json.loads((folder / _SPACE).read_text())["mode"]
    policy = TinyVLA.from_folder(folder / _POLICY).eval()
    return ModelSpace(trained, mode).actor(policy, replan_interval=replan_interval)


def _trained_with(folder: Path, policy: LeRobotPolicyWrapper) -> RobotDatasetMetadata:
    """Return what is known of the training data, without cameras.

    The policy itself pairs them by name, with its ``rename_map``.
    """
    inner = folder / "pretrained_model"
    for path in (folder / _METADATA, inner / _METADATA):
        if path.is_file():
            trained = _what_it_means(RobotDatasetMetadata.from_json(path))
            return replace(trained, cameras=())
    return replace(policy.metadata, cameras=())


def _what_it_means(metadata: RobotDatasetMetadata) -> RobotDatasetMetadata:
    """Return what can be compared of it.

    LeRobot's datasets declare no units and no references, and call robots and
    dimensions whatever they like: PushT's x and y are ``motor_0`` and ``motor_1``.
    """
    if metadata.action_units is not None or metadata.action_reference is not None:
        return metadata
    return replace(metadata, embodiment_id=None, action_names=None, state_names=None)
