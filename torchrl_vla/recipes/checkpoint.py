"""A policy on disk with what is needed to act with it, and nothing to guess."""

from __future__ import annotations

import json
from pathlib import Path

from tensordict import is_tensor_collection

from torchrl_vla.data import DemonstrationDataset
from torchrl_vla.execution import MultiStepActorWrapper
from torchrl_vla.policies import TinyVLA
from torchrl_vla.recipes.model_space import ModelSpace
from torchrl_vla.schema import IMAGE_KEY, RobotDatasetMetadata, SchemaError

_METADATA, _SPACE, _POLICY = "metadata.json", "model_space.json", "policy"


def make_policy(
    dataset: DemonstrationDataset, *, chunk_size: int, hidden: int = 256, depth: int = 2
) -> TinyVLA:
    """Make an untrained TinyVLA that fits a dataset.

    Args:
        dataset: gives the sizes, the cameras and the instructions.
        chunk_size: ``H``.
        hidden: width of the trunk.
        depth: residual blocks of the trunk.
    """
    metadata = dataset.metadata
    image = dataset.frames.get(IMAGE_KEY, None)
    cameras: tuple[str, ...] | None = None  # one image, not named
    if image is None:
        cameras = ()
    elif is_tensor_collection(image):
        cameras = tuple(sorted(image.keys()))
    return TinyVLA(
        action_dim=metadata.action_dim,
        chunk_size=chunk_size,
        state_dim=metadata.state_dim,
        cameras=cameras,
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


def load_actor(
    folder: Path | str,
    *,
    metadata: RobotDatasetMetadata,
    replan_interval: int | None = None,
) -> MultiStepActorWrapper:
    """Load a checkpoint as an actor for an environment or robot.

    Args:
        folder: written by :func:`save_checkpoint`.
        metadata: of where it will act; must be compatible with the training data.
        replan_interval: actions to execute before asking again; None = the chunk.

    Raises:
        FileNotFoundError: there is no such folder.
        SchemaError: the folder is not a checkpoint.
        IncompatibleMetadataError: lists what differs between training and acting.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"load_actor: expected a checkpoint at {str(folder)!r}, got nothing. Write "
            "one with `torchrl-vla train`."
        )
    missing = [n for n in (_METADATA, _SPACE, _POLICY) if not (folder / n).exists()]
    if missing:
        raise SchemaError(
            f"load_actor: expected {[_METADATA, _SPACE, _POLICY]} in {str(folder)!r}, "
            f"got no {missing}. Pass the folder that `torchrl-vla train` wrote."
        )
    trained = RobotDatasetMetadata.from_json(folder / _METADATA)
    trained.check_compatible(metadata)
    mode = json.loads((folder / _SPACE).read_text())["mode"]
    policy = TinyVLA.from_folder(folder / _POLICY).eval()
    return ModelSpace(trained, mode).actor(policy, replan_interval=replan_interval)
