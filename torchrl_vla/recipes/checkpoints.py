"""Checkpoints: a policy on disk with its space and its metadata."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypedDict

from tensordict.nn import TensorDictModuleBase
from torch import nn
from torchrl.envs import Compose, EnvBase, TransformedEnv

from torchrl_vla._internal.durable_files import (
    remove,
    write_json,
    write_text,
    writing_folder,
)
from torchrl_vla._internal.file_origin import Origin
from torchrl_vla._internal.json_source import read_json
from torchrl_vla.execution import ChunkExecutor, TemporalEnsemble
from torchrl_vla.policies import (
    VLAWrapperBase,
    as_policy,
    is_lerobot_folder,
    load_lerobot_policy,
    load_policy,
    save_policy,
)
from torchrl_vla.policies.module_policy import declared
from torchrl_vla.recipes.executor_options import DEFAULT_EXECUTOR, ExecutorOptions
from torchrl_vla.schema import (
    InstructionTable,
    RobotDatasetMetadata,
    SchemaError,
    SpaceError,
    check_robot_metadata,
    import_extra,
    mark_space,
    metadata_of,
    space_of,
)
from torchrl_vla.schema.lerobot_names import is_repo_id
from torchrl_vla.spaces import ConvertedPolicy, ModelSpace
from torchrl_vla.transforms import RobotConversion

_METADATA, _SPACE, _POLICY = "metadata.json", "model_space.json", "policy"


def save_checkpoint(
    folder: Path | str,
    policy: nn.Module,
    space: ModelSpace | None,
    metadata: RobotDatasetMetadata | None = None,
) -> Path:
    """Write a policy, its space and the metadata that say what its numbers mean.

    Whole or not at all: until all is written, the folder holds what it held before.

    A policy of LeRobot's is written so that LeRobot loads it, with ``metadata.json``
    beside its files; every other one into ``policy/``, see
    :func:`~torchrl_vla.policies.save_policy`.

    Args:
        folder: is created if need be.
        policy: ours, LeRobot's or the user's module.
        space: that the policy was trained in; None = robot space.
        metadata: for a policy of robot space, of the data or the environment.

    Raises:
        SchemaError: the policy could not be read back, or there are no metadata;
            nothing is written then.
        SpaceError: the policy was trained in another space.
        IncompatibleMetadataError: it was trained on data of another robot.
    """
    policy = as_policy(policy)
    trained = metadata_of(policy)
    if space is not None:
        mark_space(policy, space.policy_space)
        metadata = space.robot_policy(policy).training_metadata
    elif metadata is not None and trained is not None:
        sides = ("the policy's training data", "the argument metadata")
        check_robot_metadata("save_checkpoint", trained, metadata, sides=sides)
    if metadata is None:
        raise SchemaError(
            f"save_checkpoint: expected metadata for {type(policy).__name__} in robot "
            "space, got None. Pass env.metadata or dataset.metadata."
        )
    folder = Path(folder)
    with writing_folder(folder, _METADATA) as partial:
        where = partial / _POLICY if policy.folder_format is None else partial
        save_policy(where, policy)
        if space is not None:
            values = {"mode": space.mode, "fingerprint": space.policy_space.fingerprint}
            write_json(partial / _SPACE, values)
        else:
            remove(folder / _SPACE)
        write_text(partial / _METADATA, metadata.to_json())
    return folder


class _StoredSpace(TypedDict):
    mode: Literal["mean_std", "min_max", "quantile"]


def load_checkpoint(folder: Path | str) -> tuple[VLAWrapperBase, ModelSpace | None]:
    """Read what :func:`save_checkpoint` wrote: a policy, on the CPU, and its space.

    Returns:
        The policy in evaluation mode; the space, None = robot space.

    Raises:
        SchemaError: a file is missing or damaged, or the policy can't be built here.
        SpaceError: the policy was trained in another space than the folder's.
    """
    folder = Path(folder)
    if is_lerobot_folder(folder):
        policy = load_policy(folder)
        policy.training_metadata = _training_metadata(folder, metadata_of(policy))
        return policy, None
    needed = (_METADATA, _POLICY)
    missing = [name for name in needed if not (folder / name).exists()]
    if missing:
        raise SchemaError(
            f"load_checkpoint: expected {list(needed)} in {str(folder)!r}, got no "
            f"{missing}. Pass the folder that `torchrl-vla train` wrote."
        )
    policy = load_policy(folder / _POLICY)
    marked = space_of(policy)
    space = None
    metadata = RobotDatasetMetadata.from_json(folder / _METADATA)
    policy.training_metadata = metadata
    if (folder / _SPACE).exists():
        caller, remedy = "load_checkpoint", "Write the checkpoint again."
        stored = read_json(caller, folder / _SPACE, _StoredSpace, remedy=remedy)
        with Origin(caller, repr(str(folder)), remedy).reading(
            "a space of its metadata"
        ):
            space = ModelSpace(metadata, stored["mode"])
    found = None if space is None else space.policy_space
    if found is not None and marked not in (None, found):
        raise SpaceError(
            f"load_checkpoint: expected the space of the policy, {marked}, in "
            f"{str(folder / _SPACE)!r}, got {found}. Files of two checkpoints are "
            "mixed in the folder, or its metadata.json was edited."
        )
    return policy, space


def load_executor(
    source: Path | str,
    *,
    metadata: RobotDatasetMetadata,
    instructions: InstructionTable | None = None,
    replan_interval: int | None = None,
    convert: bool = False,
    execution: ExecutorOptions = DEFAULT_EXECUTOR,
    **options: Any,
) -> ChunkExecutor:
    """Load a checkpoint, ours or LeRobot's, as an executor for an environment or robot.

    A LeRobot policy that reads an observation history, or its last plan, needs
    :func:`prepare_environment` around its environment. An ACT with a
    ``temporal_ensemble_coeff`` acts through :class:`TemporalEnsemble`, which calls it
    at every step as LeRobot does; all others through :class:`MultiStepActorWrapper`.

    Args:
        source: a folder that ``torchrl-vla train`` or LeRobot wrote, or a repo id of
            the Hugging Face Hub.
        metadata: of the environment or robot; must be compatible with the training
            data. Of a LeRobot checkpoint only the sizes are known, unless it has a
            ``metadata.json``; its cameras are paired by name. Names are not compared
            where the data declared neither units nor a reference of actions, as
            LeRobot's do.
        instructions: for a LeRobot policy that reads text, the table of the ids that it
            will be given: the environment's.
        replan_interval: actions executed per decision; None = the chunk, or LeRobot's
            ``n_action_steps``. An ensemble calls its policy at every step, so it takes
            None or 1.
        convert: True = convert between the conventions of the training and of the
            robot where they differ, with :class:`ConvertedPolicy`.
        execution: which executor; an ACT that is ensembled takes "chunks" or
            "ensemble".
        options: for LeRobot checkpoints, of ``LeRobotPolicyWrapper.from_pretrained``,
            such as ``rename_map``, ``empty_cameras``, ``device`` and ``overrides``.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        MissingExtraError: it is LeRobot's, and ``lerobot`` is not installed.
        SchemaError: the folder is not a checkpoint, or only a part of one; an
            interval for a policy whose chunks are averaged.
        ValueError: chunks are to be averaged that are relative to the state of their
            decision.
        IncompatibleMetadataError: lists what differs between training and acting, or
            with ``convert``, which of it has no conversion.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir() and is_repo_id(source):
        caller = (
            f"load_executor, for the checkpoint {str(source)!r} of the Hugging Face Hub"
        )
        import_extra("lerobot", "lerobot", f"{caller} (there is no such folder)")
    elif not folder.is_dir():
        raise FileNotFoundError(
            f"load_executor: expected a checkpoint at {str(folder)!r}, got nothing. "
            "Write one with `torchrl-vla train`, or pass a repo id 'owner/name'."
        )
    if folder.is_dir() and is_lerobot_folder(folder):
        source = folder
    elif folder.is_dir():
        return _load_ours(
            folder, metadata, convert, (replan_interval, execution), options
        )
    if instructions is not None:
        options["instructions"] = instructions
    return _load_lerobot(
        source, metadata, convert, (replan_interval, execution), options
    )


def interval_of(policy: nn.Module, replan_interval: int | None) -> int | None:
    """Return how many actions of a chunk an executor of the policy executes.

    Args:
        policy: names its own number in ``n_action_steps``, as LeRobot's policies do.
        replan_interval: that was asked for; None = the policy's own, if it names one.
    """
    if replan_interval is None:
        return declared(policy, "n_action_steps", None)
    return replan_interval


def make_executor(
    policy: nn.Module, replan_interval: int | None, execution: ExecutorOptions
) -> Callable[..., ChunkExecutor]:
    """Return what makes the executor around a policy, or around what wraps it.

    Args:
        policy: names its own interval, see :func:`interval_of`.
        replan_interval: that was asked for.
        execution: which executor.
    """
    if execution.executor == "chunks":
        replan_interval = interval_of(policy, replan_interval)
    return execution.maker(replan_interval)


def prepare_environment(env: EnvBase, executor: TensorDictModuleBase) -> EnvBase:
    """Give an environment what an executor and its policy need from step to step.

    LeRobot policies with an observation history find it there, and TD-MPC its last
    plan; steps at which an executor waits are skipped. For every other executor the
    environment is returned as it is.

    Args:
        env: where it will act.
        executor: of :func:`load_executor`, or a policy.
    """
    make_transform = getattr(executor, "make_environment_transform", None)
    carried = [] if make_transform is None else list(make_transform())
    return TransformedEnv(env, Compose(*carried)) if carried else env


def _load_lerobot(
    source: Path | str,
    metadata: RobotDatasetMetadata,
    convert: bool,
    execution: tuple[int | None, ExecutorOptions],
    options: dict[str, Any],
) -> ChunkExecutor:
    policy = load_lerobot_policy(source, **options)
    coefficient = policy.ensemble_coefficient
    replan_interval, chosen = execution
    if coefficient is not None and chosen.executor not in ("chunks", "ensemble"):
        raise SchemaError(
            f"load_executor: expected no executor {chosen.executor!r} for a policy "
            f"with temporal_ensemble_coeff={coefficient}, whose chunks are averaged. "
            "Execute them as they are with overrides={'temporal_ensemble_coeff': None}."
        )
    if coefficient is not None and replan_interval not in (None, 1):
        raise SchemaError(
            "load_executor: expected no replan_interval for a policy with "
            f"temporal_ensemble_coeff={coefficient}, which is called at every step, "
            f"got {replan_interval}. Execute its chunks as they are with "
            "overrides={'temporal_ensemble_coeff': None}."
        )
    trained = _training_metadata(Path(source).expanduser(), policy.metadata)
    assert trained is not None
    policy.training_metadata = trained
    policy.eval()
    acting = _converted(policy, trained, metadata, convert)
    if coefficient is None:
        return make_executor(policy, replan_interval, chosen)(acting)
    # LeRobot does not say what an action is relative to; it averages them all.
    known = trained.action_reference or ("absolute",)
    reference = next((r for r in ("relative", "delta") if r in known), "absolute")
    return TemporalEnsemble(acting, action_reference=reference, coefficient=coefficient)


def _converted(
    policy: TensorDictModuleBase,
    trained: RobotDatasetMetadata,
    robot: RobotDatasetMetadata,
    convert: bool,
) -> TensorDictModuleBase:
    """Return the policy in the robot's conventions, where they differ and may."""
    if not convert:
        sides = ("the checkpoint's training data", "the environment")
        check_robot_metadata("load_executor", trained, robot, sides=sides)
        return policy
    conversion = RobotConversion(robot, trained)
    return ConvertedPolicy(policy, conversion) if conversion.changes else policy


def _load_ours(
    folder: Path,
    metadata: RobotDatasetMetadata,
    convert: bool,
    execution: tuple[int | None, ExecutorOptions],
    options: dict[str, Any],
) -> ChunkExecutor:
    if options:
        raise SchemaError(
            f"load_executor: expected no {sorted(options)} for {str(folder)!r}, a "
            "checkpoint of ours, whose cameras go by their own names. They are "
            "for LeRobot's."
        )
    policy, space = load_checkpoint(folder)
    trained = policy.training_metadata
    assert trained is not None
    make = make_executor(policy, *execution)

    def execute(acting: TensorDictModuleBase, **keys: Any) -> ChunkExecutor:
        return make(_converted(acting, trained, metadata, convert), **keys)

    return execute(policy) if space is None else space.executor(policy, execute)


def _training_metadata(
    folder: Path, known: RobotDatasetMetadata | None
) -> RobotDatasetMetadata | None:
    """Return the metadata of a LeRobot checkpoint's training data, without cameras.

    The policy itself pairs cameras by name, with its ``rename_map``.
    """
    inner = folder / "pretrained_model"
    for path in (folder / _METADATA, inner / _METADATA):
        if path.is_file():
            known = RobotDatasetMetadata.from_json(path)
    return known and known.without_images()
