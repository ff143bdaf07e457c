"""Transform that writes the command before each step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Composite, Unbounded
from torchrl.envs import Transform

from torchrl_vla._internal.env_masks import env_mask, where_env
from torchrl_vla.schema import (
    ACTION_KEY,
    PREVIOUS_ACTION_KEY,
    STATE_KEY,
    MetadataError,
    MissingKeyError,
    RobotDatasetMetadata,
)
from torchrl_vla.transforms.conversions.feature_matching import rotation_slot
from torchrl_vla.transforms.conversions.reference_change import (
    ActionBase,
    ReferenceChange,
)
from torchrl_vla.transforms.conversions.turned_rotation import TurnedRotation


class PreviousAction(Transform):
    """Write the absolute command before each step, from which deltas are measured.

    For an environment, right after the base: inside ``MultiAction`` and before a
    :class:`RobotConversion`. An episode begins at its state, which needs a dimension of
    each action's name and unit. On a buffer it does nothing: there, gather the frame's
    previous action with :class:`ActionChunkTransform` (``first_step=-1``).

    **Reads** ``action`` float ``[*B, A]``, as the environment takes it, and
    ``("observation", "state")`` float ``[*B, S]`` at a reset. **Writes**
    ``previous_action`` float ``[*B, A]``, absolute, in the environment's units.

    Args:
        metadata: of the environment; declares names, units and references.

    Raises:
        MetadataError: the state has no dimension of an action's name, or in another
            unit, actions are relative to the state, or the frame of a rotation's
            deltas is undeclared.
        MissingKeyError: there is no state at a reset.

    Examples:
        >>> from torchrl.envs import TransformedEnv
        >>> from torchrl_vla.envs import TabletopEnv
        >>> env = TabletopEnv(1)
        >>> PreviousAction(env.metadata)
        Traceback (most recent call last):
        ...
        torchrl_vla.errors.MetadataError: PreviousAction: expected a state dimension \
of the name and unit of each action of 'tabletop', got none for ['dx', 'dy']. Declare \
action_names, state_names and their units.
    """

    def __init__(self, metadata: RobotDatasetMetadata) -> None:
        super().__init__(in_keys=[STATE_KEY], out_keys=[PREVIOUS_ACTION_KEY])
        names, states = metadata.action_names or (), metadata.state_names or ()
        units = metadata.action_units or ("",) * len(names)
        state_units = metadata.state_units or ("",) * len(states)
        known = {
            pair: i for i, pair in enumerate(zip(states, state_units, strict=True))
        }
        wanted = list(zip(names, units, strict=True))
        missing = [name for name, unit in wanted if (name, unit) not in known]
        if missing or not names:
            raise MetadataError(
                "PreviousAction: expected a state dimension of the name and unit of "
                f"each action of {metadata.dataset_id!r}, got none for "
                f"{missing or 'any action'}. Declare action_names, state_names and "
                "their units."
            )
        reference = metadata.action_reference or ("absolute",) * len(names)
        if "relative" in reference:
            raise MetadataError(
                "PreviousAction: expected absolute actions or deltas in "
                f"{metadata.dataset_id!r}, got relative ones, whose state is not known "
                "at every step."
            )
        index = torch.tensor([known[pair] for pair in wanted])
        self.register_buffer("_index", index, persistent=False)
        turned = list(_delta_rotations(metadata, reference))
        composed = {dim for rotation in turned for dim in rotation.slot.dims}
        delta = [
            name == "delta" and dim not in composed
            for dim, name in enumerate(reference)
        ]
        self._change = ReferenceChange([False] * len(names), delta, turned)

    def _reset(
        self, tensordict: TensorDictBase | None, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        # EnvBase keeps the rows that are not reset as they were.
        state = tensordict_reset.get(STATE_KEY, None)
        if state is None:
            raise MissingKeyError(
                f"PreviousAction: expected a state at {STATE_KEY!r} at a reset, got "
                f"only {sorted(map(str, tensordict_reset.keys(True, True)))}."
            )
        return tensordict_reset.set(PREVIOUS_ACTION_KEY, state[..., self._index])

    def _step(
        self, tensordict: TensorDictBase, next_tensordict: TensorDictBase
    ) -> TensorDictBase:
        action, before = tensordict.get(ACTION_KEY), tensordict.get(PREVIOUS_ACTION_KEY)
        command = self._command(action, before)
        moved = tensordict.get("_step", None)
        if moved is not None:
            moved = env_mask(moved, tensordict.batch_size)
            command = where_env(moved, command, before)
        return next_tensordict.set(PREVIOUS_ACTION_KEY, command)

    def _command(self, action: Tensor, before: Tensor) -> Tensor:
        chunk = self._change.to_absolute(
            action.unsqueeze(-2), ActionBase(previous=before)
        )
        return chunk.squeeze(-2)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Leave sampled data as they are."""
        return tensordict

    def transform_observation_spec(self, observation_spec: Composite) -> Composite:
        """Add the previous command."""
        observation_spec = observation_spec.clone()
        leaf = observation_spec[STATE_KEY]
        observation_spec[PREVIOUS_ACTION_KEY] = Unbounded(
            (*leaf.shape[:-1], len(self._index)), device=leaf.device, dtype=leaf.dtype
        )
        return observation_spec


def _delta_rotations(
    metadata: RobotDatasetMetadata, reference: Sequence[str]
) -> Iterator[TurnedRotation]:
    def refuse(problem: str) -> None:
        raise MetadataError(
            f"PreviousAction: expected deltas of a rotation in {metadata.dataset_id!r} "
            f"that can be composed, got {problem}."
        )

    for rotation in metadata.rotations:
        kinds = {reference[dim] for dim in rotation.dims}
        if "delta" not in kinds:
            continue
        if kinds != {"delta"} or rotation.frame is None:
            refuse(
                f"references {sorted(kinds)} and frame {rotation.frame!r} at "
                f"dimensions {rotation.dims} (declare one reference, and "
                "RotationConvention(..., frame='world') or 'body')"
            )
        slot = rotation_slot(rotation, metadata.action_units, refuse)
        yield TurnedRotation(slot, "delta", str(rotation.frame))
