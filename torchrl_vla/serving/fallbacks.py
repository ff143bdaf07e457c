"""Chunks in place of an answer that did not come."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_vla.errors import ServingError, SettingsError
from torchrl_vla.schema import STATE_KEY
from torchrl_vla.serving.server_manifest import ServerManifest


class Fallback(ABC):
    """Say what a robot does while its policy does not answer (abstract)."""

    def check(self, manifest: ServerManifest) -> None:
        """Refuse a policy for which it can't say that.

        Raises:
            SettingsError: says what is missing.
        """
        return None

    @abstractmethod
    def chunk(
        self, manifest: ServerManifest, inputs: TensorDictBase, last: Tensor | None
    ) -> Tensor:
        """Return a chunk ``[*B, H, A]``.

        Args:
            manifest: of the policy.
            inputs: present observation, ``[*B]``.
            last: the policy's last chunk, ``[*B, H, A]``; None = there was none.

        Raises:
            ServingError: there is nothing to make it from.
        """


class HoldPosition(Fallback):
    """Stay where the robot is: absolute actions take its state, others are zero.

    Needs metadata that declare the reference of the actions, and for each absolute one
    a state of the same name and unit.

    Examples:
        >>> from tensordict import TensorDict
        >>> from torchrl_vla.schema import RobotDatasetMetadata
        >>> robot = RobotDatasetMetadata(
        ...     "arm",
        ...     action_names=("x", "grip"),
        ...     action_reference=("absolute", "delta"),
        ...     state_names=("z", "x"),
        ... )
        >>> manifest = ServerManifest("p", 2, 2, (), (), metadata=robot)
        >>> seen = {"observation": {"state": torch.tensor([[5.0, 7.0]])}}
        >>> HoldPosition().chunk(manifest, TensorDict(seen, [1]), None)
        tensor([[[7., 0.],
                 [7., 0.]]])
    """

    def check(self, manifest: ServerManifest) -> None:
        """Refuse metadata that do not say where an absolute action's state is."""
        self._state_dims(manifest)

    def chunk(
        self, manifest: ServerManifest, inputs: TensorDictBase, last: Tensor | None
    ) -> Tensor:
        """Return the present position, ``H`` times."""
        dims = self._state_dims(manifest)
        state = inputs.get(STATE_KEY, None)
        if state is None and any(dim is not None for dim in dims):
            raise ServingError(
                f"HoldPosition: expected the robot's position at {STATE_KEY!r}, got "
                "none. Add the state to the observation. No action was sent."
            )
        zero = torch.zeros(*inputs.batch_size, device=inputs.device)
        values = [zero if d is None else state[..., d] for d in dims]  # type: ignore[index]
        action = torch.stack([value.float() for value in values], -1)
        return action.unsqueeze(-2).repeat_interleave(manifest.chunk_size, -2)

    def _state_dims(self, manifest: ServerManifest) -> list[int | None]:
        """Return the state's dimension of each absolute action; None = it is zero."""
        robot = manifest.metadata
        reference = None if robot is None else robot.action_reference
        if robot is None or reference is None:
            raise SettingsError(
                "HoldPosition: expected metadata with action_reference, got none. "
                "Declare it, or use ZeroAction for velocities and steps."
            )
        names = robot.action_names or ()
        states = robot.state_names or ()
        units = dict(zip(states, robot.state_units or (), strict=False))
        wanted = dict(zip(names, robot.action_units or (), strict=False))
        dims: list[int | None] = []
        for index, kind in enumerate(reference):
            if kind != "absolute":
                dims.append(None)
                continue
            name = names[index] if names else None
            same = units.get(name) in (None, wanted.get(name)) if name else False
            if name not in states or not same:
                raise SettingsError(
                    f"HoldPosition: expected a state of the name and unit of the "
                    f"absolute action {name!r} (dimension {index}), got states "
                    f"{states} in {robot.state_units}. Use RepeatLast."
                )
            dims.append(states.index(name))
        return dims


class RepeatLast(Fallback):
    """Repeat the last action that was executed of the policy's last chunk.

    For absolute actions. Repeating a step or a velocity keeps the robot moving.

    Args:
        replan_interval: actions of a chunk that are executed; None = all.

    Examples:
        >>> manifest = ServerManifest("p", 3, 1, (), ())
        >>> last = torch.tensor([[[1.0], [2.0], [3.0]]])
        >>> from tensordict import TensorDict
        >>> seen = TensorDict({}, [1])
        >>> RepeatLast(replan_interval=2).chunk(manifest, seen, last)[0, :, 0]
        tensor([2., 2., 2.])
    """

    def __init__(self, replan_interval: int | None = None) -> None:
        self.replan_interval = replan_interval

    def chunk(
        self, manifest: ServerManifest, inputs: TensorDictBase, last: Tensor | None
    ) -> Tensor:
        """Return the last action, ``H`` times."""
        if last is None or last.shape[:-2] != inputs.batch_size:
            raise ServingError(
                "RepeatLast: expected a last chunk for the batch size "
                f"{list(inputs.batch_size)}, got "
                f"{'none' if last is None else list(last.shape)}. There is nothing to "
                "repeat yet. No action was sent."
            )
        executed = self.replan_interval or manifest.chunk_size
        return last[..., executed - 1 : executed, :].expand_as(last).clone()


class ZeroAction(Fallback):
    """Send zeros: a stop for velocities and steps, a motion for absolute actions.

    Raises:
        SettingsError: the metadata declare absolute actions.

    Examples:
        >>> from tensordict import TensorDict
        >>> manifest = ServerManifest("p", 2, 1, (), ())
        >>> ZeroAction().chunk(manifest, TensorDict({}, [1]), None)
        tensor([[[0.],
                 [0.]]])
    """

    def check(self, manifest: ServerManifest) -> None:
        """Refuse absolute actions, for which zero is a place to go to."""
        robot = manifest.metadata
        if robot is not None and "absolute" in (robot.action_reference or ()):
            raise SettingsError(
                "ZeroAction: expected steps or velocities, got action_reference "
                f"{robot.action_reference}. Use HoldPosition or RepeatLast."
            )

    def chunk(
        self, manifest: ServerManifest, inputs: TensorDictBase, last: Tensor | None
    ) -> Tensor:
        """Return zeros."""
        sizes = (*inputs.batch_size, manifest.chunk_size, manifest.action_dim)
        return torch.zeros(sizes, device=inputs.device)
