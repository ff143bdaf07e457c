"""Record of what a server serves."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

import torch
from tensordict.nn import TensorDictModuleBase

from torchrl_vla._internal.json_source import read_json
from torchrl_vla.errors import SchemaError
from torchrl_vla.policies import as_policy
from torchrl_vla.policies.module_policy import declared
from torchrl_vla.schema import RobotDatasetMetadata, metadata_of
from torchrl_vla.serving.observation_leaves import path_of
from torchrl_vla.serving.serving_mode import ServingMode, serving_mode

_Paths = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class ServerManifest:
    """Say what a server serves: one policy, its keys and sizes, and its robot.

    Args:
        policy: name of the policy.
        chunk_size: ``H``.
        action_dim: ``A``.
        in_keys: paths that the policy reads.
        out_keys: paths that it writes.
        optional_in_keys: paths that it reads where they are.
        mode: how many clients it may have.
        metadata: of the robot that it drives; None = undeclared, nothing is compared.
        replan_interval: actions of a chunk that it means to be executed; None = all.
        revision: of the weights, e.g. their hash; a client that reconnects to another
            one stops.
        device: where it runs.

    Examples:
        >>> from tensordict.nn import TensorDictModule
        >>> policy = TensorDictModule(lambda s: s, ["state"], ["action_chunk"])
        >>> policy.chunk_size, policy.action_dim = 4, 2
        >>> manifest = ServerManifest.of(policy, revision="3f2a")
        >>> manifest.chunk_size, manifest.in_keys
        (4, (('state',),))
        >>> ServerManifest.from_json(manifest.to_json()) == manifest
        True
    """

    policy: str
    chunk_size: int
    action_dim: int
    in_keys: _Paths
    out_keys: _Paths
    optional_in_keys: _Paths = ()
    mode: ServingMode = "shared"
    metadata: RobotDatasetMetadata | None = None
    replan_interval: int | None = None
    revision: str = ""
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("chunk_size", "action_dim", "replan_interval"):
            size = vars(self)[name]
            if size is not None and size < 1:
                raise SchemaError(
                    f"ServerManifest: expected {name} >= 1, got {size}. Take the "
                    "policy's own."
                )

    @classmethod
    def of(
        cls,
        policy: TensorDictModuleBase,
        *,
        metadata: RobotDatasetMetadata | None = None,
        revision: str = "",
        name: str | None = None,
    ) -> ServerManifest:
        """Describe a policy.

        Args:
            policy: of robot space.

        Keyword Args:
            metadata: of the robot; None = those of the policy's training data.
            revision: of the weights.
            name: of the policy; None = its class.

        Raises:
            SpaceError: the policy is of model space.
            SchemaError: its sizes are unknown.
        """
        optional = declared(policy, "optional_in_keys", ())
        sizes = policy if _says_sizes(policy) else as_policy(policy)
        tensors = chain(policy.parameters(), policy.buffers())
        return cls(
            policy=name or type(policy).__name__,
            chunk_size=sizes.chunk_size,
            action_dim=sizes.action_dim,
            in_keys=tuple(path_of(key) for key in policy.in_keys),
            out_keys=tuple(path_of(key) for key in policy.out_keys),
            optional_in_keys=tuple(path_of(key) for key in optional),
            mode=serving_mode(policy),
            metadata=metadata_of(policy) if metadata is None else metadata,
            replan_interval=declared(policy, "n_action_steps", None),
            revision=revision,
            device=str(next((t.device for t in tensors), torch.device("cpu"))),
        )

    def to_json(self) -> str:
        """Write every field as JSON."""
        values = asdict(replace(self, metadata=None))
        if self.metadata is not None:
            values["metadata"] = json.loads(self.metadata.to_json())
        return json.dumps(values, indent=2)

    @classmethod
    def from_json(cls, source: str | Path) -> ServerManifest:
        """Read a JSON text, or the file at a :class:`~pathlib.Path`.

        Raises:
            FileNotFoundError: there is no such file.
            SchemaError: a field is unknown, missing or of another type.
        """
        remedy = "Install the same torchrl_vla on both machines."
        return read_json("ServerManifest", source, cls, remedy=remedy)

    def differences(self, other: ServerManifest) -> list[str]:
        """Return the names of the fields in which another manifest differs."""
        return [name for name in vars(self) if vars(self)[name] != vars(other)[name]]


def _says_sizes(policy: TensorDictModuleBase) -> bool:
    sizes = [declared(policy, name, None) for name in ("chunk_size", "action_dim")]
    return None not in sizes
