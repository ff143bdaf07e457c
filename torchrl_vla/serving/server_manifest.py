"""Record of what a server serves."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from torchrl_vla._internal.json_source import read_json
from torchrl_vla.errors import SchemaError
from torchrl_vla.schema import IMAGE_KEY, RobotDatasetMetadata

#: ``"shared"`` = any number of clients; ``"exclusive"`` = one, since the policy
#: remembers; ``"refused"`` = none, since it writes no chunk.
ServingMode = Literal["shared", "exclusive", "refused"]

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
        >>> manifest = ServerManifest(
        ...     "p", 4, 2, in_keys=(("state",),), out_keys=(("action_chunk",),)
        ... )
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

    @property
    def image_paths(self) -> dict[str, tuple[str, ...]]:
        """Name of each image to its path; ``"image"`` is one without a camera's name.

        Examples:
            >>> robot = RobotDatasetMetadata("arm", cameras=("front", "wrist"))
            >>> image = ("observation", "image")
            >>> ServerManifest("p", 4, 2, (image,), (), metadata=robot).image_paths
            {'front': ('observation', 'image', 'front'), \
'wrist': ('observation', 'image', 'wrist')}
        """
        cameras = () if self.metadata is None else self.metadata.cameras
        made: dict[str, tuple[str, ...]] = {}
        for path in self.in_keys:
            if path[:-1] == IMAGE_KEY:
                made[path[-1]] = path
            elif path == IMAGE_KEY and cameras in ((), ("image",)):
                made["image"] = path
            elif path == IMAGE_KEY:
                made |= {name: (*path, name) for name in cameras}
        return made

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
