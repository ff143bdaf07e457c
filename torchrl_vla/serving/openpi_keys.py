"""Names of openpi's clients for observations and actions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from torchrl_vla.errors import WireError
from torchrl_vla.schema import IMAGE_KEY, INSTRUCTION_KEY
from torchrl_vla.serving.observation_leaves import Leaves, Path, path_of

if TYPE_CHECKING:
    from torchrl_vla.serving.server_manifest import ServerManifest

#: What an openpi message holds.
Values = Mapping[str, object]


@dataclass(frozen=True)
class OpenPIKeys:
    """Pair openpi's names with paths of a tensordict.

    openpi's observations are flat dictionaries without a batch dimension: images
    ``[h, w, 3]`` uint8, vectors, and a text. Its answers hold ``actions [H, A]``.

    Args:
        images: openpi's name to the path of an image ``[3, h, w]``.
        vectors: openpi's name to the path of a float32 vector.
        prompt: openpi's name of the instruction; None = it sends none.
        actions: openpi's name of the chunk.

    Examples:
        >>> from torchrl_vla.serving import ServerManifest
        >>> manifest = ServerManifest(
        ...     "p", 4, 2, in_keys=(("observation", "state"),), out_keys=()
        ... )
        >>> OpenPIKeys.of(manifest).vectors
        {'observation/state': ('observation', 'state')}
    """

    images: Mapping[str, Path] = field(default_factory=dict)
    vectors: Mapping[str, Path] = field(default_factory=dict)
    prompt: str | None = None
    actions: str = "actions"

    @classmethod
    def of(cls, manifest: ServerManifest) -> OpenPIKeys:
        """Name every input of a policy by its path.

        ``("observation", "state")`` is ``observation/state``; each camera of the
        metadata is ``observation/<camera>``, an image without cameras
        ``observation/image``; the instruction is ``prompt``.
        """
        named = manifest.image_paths.items()
        images = {f"{path[0]}/{name}": path for name, path in named}
        vectors: dict[str, Path] = {}
        prompt = None
        for path in manifest.in_keys:
            if path == path_of(INSTRUCTION_KEY):
                prompt = "prompt"
            elif path[:2] != path_of(IMAGE_KEY):
                vectors["/".join(path)] = path
        return cls(images, vectors, prompt)

    def to_leaves(self, values: Values) -> Leaves:
        """Return an openpi observation as leaves with the batch size ``[1]``.

        Raises:
            WireError: a name is missing, or its value is of another kind.
        """
        leaves = Leaves((1,), {})
        for name, path in self.images.items():
            image = _array(values, name)
            if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8:
                raise WireError(
                    f"OpenPIKeys: expected an image uint8 [h, w, 3] at {name!r}, got "
                    f"{image.dtype} {list(image.shape)}."
                )
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
            leaves.tensors[path] = pixels.contiguous().unsqueeze(0)
        for name, path in self.vectors.items():
            vector = np.array(_array(values, name), dtype=np.float32)
            leaves.tensors[path] = torch.from_numpy(np.atleast_1d(vector)).unsqueeze(0)
        if self.prompt is not None:
            match values.get(self.prompt):
                case str(text):
                    leaves.texts[path_of(INSTRUCTION_KEY)] = [text]
                case other:
                    kind = type(other).__name__
                    raise WireError(
                        f"OpenPIKeys: expected a text at {self.prompt!r}, got {kind}."
                    )
        return leaves

    def to_values(self, leaves: Leaves, row: int) -> dict[str, object]:
        """Return one row of leaves as an openpi observation.

        Raises:
            WireError: a path is missing.
        """
        values: dict[str, object] = {}
        for name, path in self.images.items():
            image = _tensor(leaves, path)[row].permute(1, 2, 0)
            values[name] = np.ascontiguousarray(image.numpy())
        for name, path in self.vectors.items():
            values[name] = _tensor(leaves, path)[row].numpy()
        if self.prompt is not None:
            texts = leaves.texts.get(path_of(INSTRUCTION_KEY))
            if texts is None:
                raise WireError(
                    f"OpenPIKeys: expected texts at {INSTRUCTION_KEY!r} for "
                    f"{self.prompt!r}, got none. Pass instructions=env.instructions, "
                    "which turns ids into texts."
                )
            values[self.prompt] = texts[row]
        return values

    def to_chunk(self, values: Values, shape: tuple[int, int]) -> Tensor:
        """Return the chunk float32 ``[H, A]`` of an openpi answer.

        Args:
            values: of the answer.
            shape: ``(H, A)``.

        Raises:
            WireError: it is of another shape.
        """
        actions = np.array(_array(values, self.actions), dtype=np.float32)
        if actions.shape != shape:
            raise WireError(
                f"OpenPIKeys: expected [H, A] = {list(shape)} at {self.actions!r}, got "
                f"{list(actions.shape)}. Pass the server's chunk_size and action_dim."
            )
        return torch.from_numpy(actions)


def _array(values: Values, name: str) -> np.ndarray:
    match values.get(name):
        case np.ndarray() as array:
            return array
        case float() | int() | np.generic() as number:
            return np.asarray(number)
        case other:
            raise WireError(
                f"OpenPIKeys: expected an array at {name!r}, got "
                f"{type(other).__name__}; there are {sorted(map(str, values))}."
            )


def _tensor(leaves: Leaves, path: Path) -> Tensor:
    if path not in leaves.tensors:
        known = list(leaves.tensors)
        raise WireError(f"OpenPIKeys: expected a tensor at {path}, got only {known}.")
    return leaves.tensors[path].detach().cpu()
