"""Normalization of actions, between robot space and model space."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from torch import Tensor
from torchrl.data import Bounded, Composite, TensorSpec
from torchrl.data.tensor_specs import ContinuousBox
from torchrl.envs import EnvBase, Transform

from torchrl_vla._internal.torchrl_spellings import torchrl_spellings
from torchrl_vla.schema import (
    ACTION_CHUNK_KEY,
    ACTION_KEY,
    FeatureStatistics,
    MissingKeyError,
    RobotDatasetMetadata,
    SpaceError,
)
from torchrl_vla.transforms.affine_scaling import AffineScaling
from torchrl_vla.transforms.placement import acts_in_environment, environment_key

_RENAME = "in_keys=, which are scaled in place, and a RenameTransform"


@torchrl_spellings(
    same={"standard_normal": (True,), "out_keys": (None,), "out_keys_inv": (None,)},
    instead={
        "standard_normal": "loc=low and scale=high - low, which map the bounds to 0..1",
        "out_keys": _RENAME,
        "out_keys_inv": _RENAME,
    },
)
class ActionScaling(AffineScaling):
    """Normalize actions on their way to the loss, denormalize them to the robot.

    On a replay buffer, sampled actions and chunks (padded slots too) are normalized,
    and what is written stays as it is. In an environment, the action that the policy
    gives is denormalized before the step, and the action spec is that of model space.
    The inverse acts in an environment only; call :meth:`denormalize` for a tensor. A
    rollout of a scaled environment holds model space, so it must not go into a buffer
    that normalizes again.

    **Reads** robot space and **writes** model space, at ``action`` float ``[*B, A]``
    and ``action_chunk`` float ``[*B, H, A]``, whichever are there. In an environment
    it reads model space and writes robot space at ``action``.

    Args:
        loc: a number or ``[A]``, in the action's unit; see :meth:`from_stats` and
            :meth:`from_metadata` for the usual ways to get it. None = it and the scale
            map the bounds of the environment's action to ``[-1, 1]``, once attached.
        scale: a number or ``[A]``, positive, in the action's unit; None with ``loc``.

    Keyword Args:
        mask: bool ``[A]``, True = scale this dimension. None = all.
        in_keys: keys to normalize in data; those that are missing are passed over, but
            not all.
        in_keys_inv: keys to denormalize in an environment.

    Raises:
        ValueError: see :meth:`from_stats`.
        MissingKeyError: the data have none of ``in_keys``, or an environment's step
            lacks one of ``in_keys_inv``.
        SchemaError: the last dimension is not ``A``, or the dtype is not floating.
        SpaceError: another scaling beside it scales the same key, the environment's
            policy writes its action at another key than ``in_keys_inv``, or there are
            no bounds to take ``loc`` and ``scale`` from.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> scaling = ActionScaling.from_stats(
        ...     mean=torch.tensor([1.0, 2.0]), std=torch.tensor([2.0, 4.0])
        ... )
        >>> data = TensorDict({"action": torch.tensor([[3.0, 6.0]])}, [1])
        >>> scaling(data)["action"]
        tensor([[1., 1.]])
        >>> scaling.denormalize(torch.tensor([[1.0, 1.0]]))
        tensor([[3., 6.]])
    """

    def __init__(
        self,
        loc: Tensor | float | None = None,
        scale: Tensor | float | None = None,
        *,
        mask: Tensor | Sequence[bool] | None = None,
        in_keys: Sequence[NestedKey] = (ACTION_KEY, ACTION_CHUNK_KEY),
        in_keys_inv: Sequence[NestedKey] = (ACTION_KEY,),
    ) -> None:
        if (loc is None) != (scale is None):
            raise ValueError(
                f"ActionScaling: expected both of loc and scale, or neither, got {loc} "
                f"and {scale}."
            )
        super().__init__(
            0.0 if loc is None else loc,
            1.0 if scale is None else scale,
            None if loc is None else mask,
            in_keys=list(in_keys),
            out_keys=list(in_keys),
            in_keys_inv=list(in_keys_inv),
            out_keys_inv=list(in_keys_inv),
        )
        self._awaits_bounds = loc is None
        self._wanted_mask = mask

    def empty_cache(self) -> None:
        """Forget what is known of the environment, which has another transform now."""
        self._spec_is_checked = False
        super().empty_cache()

    def set_container(self, container: Transform | EnvBase) -> None:
        """Attach to a ``Compose`` or an environment; see :class:`AffineScaling`."""
        self._spec_is_checked = False
        super().set_container(container)

    def _environment_keys(self, chain: list[Transform]) -> set[NestedKey]:
        inner = chain[: chain.index(self)]
        return {environment_key(key, inner) for key in self.in_keys_inv}

    @staticmethod
    def _from(
        metadata: RobotDatasetMetadata,
    ) -> tuple[FeatureStatistics | None, Tensor | None]:
        if metadata.action_dim is None:
            return None, None
        moving = torch.ones(metadata.action_dim, dtype=torch.bool)
        # A gripper in percent would drown every other dimension in the loss.
        unit = [g.dim for g in metadata.grippers if g.low >= -1 and g.high <= 1]
        moving[unit] = False
        return metadata.action_statistics, moving

    @staticmethod
    def _bounds(metadata: RobotDatasetMetadata) -> tuple[Tensor | None, Tensor | None]:
        low, high = metadata.action_low, metadata.action_high
        if low is None or high is None:
            return None, None
        return torch.tensor(low), torch.tensor(high)

    def _take_bounds(self, leaf: TensorSpec) -> None:
        """Map the bounds of an environment's action to ``[-1, 1]``."""
        ends = []
        if isinstance(leaf, Bounded) and isinstance(leaf.space, ContinuousBox):
            limit = torch.finfo(leaf.dtype).max  # stands for no bound
            ends = [
                end.double().reshape(-1, leaf.shape[-1]).unique(dim=0)
                for end in (leaf.space.low, leaf.space.high)
            ]
            if any(len(end) > 1 or (end.abs() >= limit).any() for end in ends):
                ends = []
        if not ends:
            raise SpaceError(
                "ActionScaling: expected finite bounds, the same for each environment, "
                f"in the action spec to take loc and scale from, got {leaf}. Build it "
                "with ActionScaling.from_stats or from_metadata."
            )
        low, high = (end[0] for end in ends)
        self._set((low + high) / 2, (high - low) / 2, self._wanted_mask)
        self._awaits_bounds = False

    def _check(self, value: Tensor) -> None:
        if self._awaits_bounds:
            raise SpaceError(
                "ActionScaling: expected loc and scale, or the bounds of an "
                "environment that it is attached to, got neither. Build it with "
                "ActionScaling.from_stats or from_metadata to scale data."
            )
        super()._check(value)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Normalize the actions of sampled data."""
        self._check_scaled_once(in_data=True, in_environment=False)
        tensordict = tensordict.copy()  # buffer[:] hands out the storage itself
        found = False
        for key in self.in_keys:
            value = tensordict.get(key, None)
            if value is not None:
                tensordict.set(key, self.normalize(value))
                found = True
        if not found:
            raise MissingKeyError(
                f"ActionScaling: expected one of {list(self.in_keys)} in the data, got "
                f"none. Available: {sorted(map(str, tensordict.keys(True, True)))}."
            )
        return tensordict

    def _inv_call(self, tensordict: TensorDictBase) -> TensorDictBase:
        if not acts_in_environment(self):
            return tensordict  # written to a buffer: robot space stays
        if not self._spec_is_checked:
            self.container.input_spec  # noqa: B018 (transform_action_spec checks it)
            self._spec_is_checked = True
        for key in self.in_keys_inv:
            value = tensordict.get(key, None)
            if value is None:
                raise MissingKeyError(
                    f"ActionScaling: expected an action in model space at {key!r}, got "
                    "nothing. Available: "
                    f"{sorted(map(str, tensordict.keys(True, True)))}."
                )
            tensordict.set(key, self.denormalize(value))
        return tensordict

    def _call(self, next_tensordict: TensorDictBase) -> TensorDictBase:
        return next_tensordict  # an environment's output has no action

    def transform_action_spec(self, action_spec: Composite) -> Composite:
        """Describe the action in model space.

        Raises:
            SpaceError: the policy of this environment writes no such action.
        """
        actions = list(action_spec.keys(True, True))
        for key in map(unravel_key, self.in_keys_inv):
            if key not in actions:
                # No KeyError: EnvBase.action_spec would replace it by its own.
                raise SpaceError(
                    f"ActionScaling: expected {key!r} in the environment's action spec,"
                    f" got {actions}. Pass in_keys_inv={actions} to scale what the "
                    "policy writes, or put the scaling before the transform that "
                    "renames the action."
                )
        if self._awaits_bounds:
            self._take_bounds(action_spec[unravel_key(self.in_keys_inv[0])])
        return self._normalized_spec(action_spec, self.in_keys_inv)
