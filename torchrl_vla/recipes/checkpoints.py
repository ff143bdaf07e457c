"""A policy on disk with what is needed to act with it, and nothing to guess."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import Compose, EnvBase, TransformedEnv

from torchrl_vla.execution import (
    ChunkExecutor,
    MultiStepActorWrapper,
    TemporalEnsemble,
)
from torchrl_vla.policies import (
    LeRobotFlowPolicy,
    LeRobotPolicyWrapper,
    TinyDiffusionVLA,
    TinyFlowVLA,
    TinyGaussianVLA,
    TinyTokenVLA,
    TinyVLA,
    load_lerobot_policy,
)
from torchrl_vla.policies.policy_folder import policy_class_of
from torchrl_vla.recipes.heads import TinyPolicies
from torchrl_vla.schema import (
    InstructionTable,
    RobotDatasetMetadata,
    SchemaError,
    import_extra,
)
from torchrl_vla.schema.lerobot_names import is_repo_id
from torchrl_vla.spaces import ModelSpace
from torchrl_vla.tokenizers import ActionTokenizerBase, UniformActionTokenizer

_CLASSES = {
    cls.__name__: cls
    for cls in (TinyVLA, TinyTokenVLA, TinyGaussianVLA, TinyFlowVLA, TinyDiffusionVLA)
}
_METADATA, _SPACE, _POLICY = "metadata.json", "model_space.json", "policy"
_TOKENIZER = "tokenizer.json"
_LEROBOT = ("config.json", "pretrained_model")


def save_checkpoint(
    folder: Path | str, policy: TinyPolicies, space: ModelSpace
) -> Path:
    """Write the policy, its metadata with statistics, and its scaling mode.

    Of a token policy also the tokenizer, which must be a ``UniformActionTokenizer``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    policy.to_folder(folder / _POLICY)
    if isinstance(policy, TinyTokenVLA):
        _write_tokenizer(folder / _TOKENIZER, policy.action_tokenizer)
    (folder / _SPACE).write_text(json.dumps({"mode": space.mode}))
    (folder / _METADATA).write_text(space.metadata.to_json())
    return folder


def load_checkpoint(folder: Path | str) -> tuple[TinyPolicies, ModelSpace]:
    """Read what :func:`save_checkpoint` wrote: a policy, on the CPU, and its space.

    Raises:
        SchemaError: a file is missing, or the policy is of no class known here.
    """
    folder = Path(folder)
    missing = [n for n in (_METADATA, _SPACE, _POLICY) if not (folder / n).exists()]
    if missing:
        raise SchemaError(
            f"load_checkpoint: expected {[_METADATA, _SPACE, _POLICY]} in "
            f"{str(folder)!r}, got no {missing}. Pass the folder that "
            "`torchrl-vla train` wrote."
        )
    trained = RobotDatasetMetadata.from_json(folder / _METADATA)
    mode = json.loads((folder / _SPACE).read_text())["mode"]
    name = policy_class_of(folder / _POLICY)
    if name not in _CLASSES:
        raise SchemaError(
            f"load_checkpoint: expected a policy of {sorted(_CLASSES)} in "
            f"{str(folder / _POLICY)!r}, got {name!r}. Load it with its own "
            "from_folder."
        )
    parts = {}
    if name == "TinyTokenVLA":
        parts["action_tokenizer"] = _read_tokenizer(folder / _TOKENIZER)
    policy = _CLASSES[name].from_folder(folder / _POLICY, **parts)
    return policy.eval(), ModelSpace(trained, mode)


def _write_tokenizer(path: Path, tokenizer: ActionTokenizerBase) -> None:
    if not isinstance(tokenizer, UniformActionTokenizer):
        raise SchemaError(
            "save_checkpoint: expected a UniformActionTokenizer, got "
            f"{type(tokenizer).__name__}. Write the policy with its own to_folder."
        )
    values = {
        "num_bins": tokenizer.num_bins,
        "low": tokenizer.low.tolist(),
        "high": tokenizer.high.tolist(),
    }
    path.write_text(json.dumps(values))


def _read_tokenizer(path: Path) -> UniformActionTokenizer:
    values = json.loads(path.read_text())
    return UniformActionTokenizer(
        values["num_bins"],
        low=torch.tensor(values["low"]),
        high=torch.tensor(values["high"]),
    )


def save_lerobot_checkpoint(
    folder: Path | str,
    policy: LeRobotPolicyWrapper | LeRobotFlowPolicy,
    metadata: RobotDatasetMetadata,
) -> Path:
    """Write a checkpoint that LeRobot loads, and what its numbers mean beside it.

    LeRobot's own files say sizes and statistics, but neither units nor names nor
    whether an action is a step or a target; ``metadata.json`` does, and
    :func:`load_executor` checks it. Of a ``LeRobotFlowPolicy`` the noise is written,
    too.
    """
    policy.to_folder(folder)
    folder = Path(folder)
    (folder / _METADATA).write_text(metadata.to_json())
    return folder


def load_executor(
    source: Path | str,
    *,
    metadata: RobotDatasetMetadata,
    instructions: InstructionTable | None = None,
    replan_interval: int | None = None,
    **options: Any,
) -> ChunkExecutor:
    """Load a checkpoint, ours or LeRobot's, as an actor for an environment or robot.

    A policy of LeRobot's that looks back, or goes on from its last plan, needs
    :func:`prepare_environment` around its environment. An ACT with a
    ``temporal_ensemble_coeff`` acts through :class:`TemporalEnsemble`, which asks it at
    every step as LeRobot does; all others through :class:`MultiStepActorWrapper`.

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
            what LeRobot executes of it (``n_action_steps``). An ensemble is asked at
            every step, so it takes None or 1.
        options: for LeRobot checkpoints, of ``LeRobotPolicyWrapper.from_pretrained``,
            such as ``rename_map``, ``empty_cameras``, ``device`` and ``overrides``.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        MissingExtraError: it is LeRobot's, and ``lerobot`` is not installed.
        SchemaError: the folder is not a checkpoint, or only a part of one; an
            interval for a policy whose chunks are averaged.
        ValueError: chunks are to be averaged that are relative to the state in which
            they were made.
        IncompatibleMetadataError: lists what differs between training and acting.
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
    is_ours = (folder / _SPACE).exists() or (folder / _POLICY).exists()
    if not is_ours and any((folder / name).exists() for name in _LEROBOT):
        source = folder
    elif folder.is_dir():
        return _load_ours(folder, metadata, replan_interval, options)
    return _load_lerobot(source, metadata, instructions, replan_interval, options)


def prepare_environment(env: EnvBase, actor: TensorDictModuleBase) -> EnvBase:
    """Give an environment what an actor and its policy need from step to step.

    Policies of LeRobot's that look back find their history there, and TD-MPC its last
    plan; rows that an executor makes wait are skipped. For every other actor the
    environment is returned as it is.

    Args:
        env: where it will act.
        actor: of :func:`load_executor`, or a policy.
    """
    make_transform = getattr(actor, "make_environment_transform", None)
    carried = [] if make_transform is None else list(make_transform())
    return TransformedEnv(env, Compose(*carried)) if carried else env


def _load_lerobot(
    source: Path | str,
    metadata: RobotDatasetMetadata,
    instructions: InstructionTable | None,
    replan_interval: int | None,
    options: dict[str, Any],
) -> ChunkExecutor:
    policy = load_lerobot_policy(source, instructions=instructions, **options)
    coefficient = policy.ensemble_coefficient
    if coefficient is not None and replan_interval not in (None, 1):
        raise SchemaError(
            "load_executor: expected no replan_interval for a policy with "
            f"temporal_ensemble_coeff={coefficient}, which is asked at every step, "
            f"got {replan_interval}. Execute its chunks as they are with "
            "overrides={'temporal_ensemble_coeff': None}."
        )
    trained = _trained_with(Path(source).expanduser(), policy)
    trained.check_compatible(metadata)
    policy.eval()
    if coefficient is None:
        if replan_interval is None:
            replan_interval = policy.n_action_steps
        return MultiStepActorWrapper(policy, replan_interval=replan_interval)
    # LeRobot does not say what an action is measured from; it averages them all.
    known = trained.action_reference or ("absolute",)
    reference = next((r for r in ("relative", "delta") if r in known), "absolute")
    return TemporalEnsemble(policy, action_reference=reference, coefficient=coefficient)


def _load_ours(
    folder: Path,
    metadata: RobotDatasetMetadata,
    replan_interval: int | None,
    options: dict[str, Any],
) -> MultiStepActorWrapper:
    if options:
        raise SchemaError(
            f"load_executor: expected no {sorted(options)} for {str(folder)!r}, a "
            "checkpoint of ours, whose cameras go by their own names. They are "
            "for LeRobot's."
        )
    policy, space = load_checkpoint(folder)
    _what_it_means(space.metadata).check_compatible(metadata)
    return space.executor(policy, replan_interval=replan_interval)


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
