"""Transform between the conventions of two robots' metadata."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from torch import Tensor
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import EnvBase, Transform

from torchrl_vla.schema import (
    ACTION_BASE_KEY,
    HISTORY_KEY,
    PREVIOUS_ACTION_KEY,
    FeatureStatistics,
    IncompatibleMetadataError,
    MetadataError,
    MissingKeyError,
    RobotDatasetMetadata,
)
from torchrl_vla.schema.compatibility import differences
from torchrl_vla.transforms.conversions.chunk_resampling import resample_chunk
from torchrl_vla.transforms.conversions.conversion_chain import check_place
from torchrl_vla.transforms.conversions.conversion_keys import ConversionKeys
from torchrl_vla.transforms.conversions.conversion_plan import ConversionPlan
from torchrl_vla.transforms.conversions.converted_action_spec import (
    acting_keys,
    converted_action_leaf,
)
from torchrl_vla.transforms.conversions.converted_metadata import (
    changed_fields,
    converted_metadata,
)
from torchrl_vla.transforms.conversions.feature_map import (
    check_entry,
    check_pad_mask,
)
from torchrl_vla.transforms.conversions.reference_change import ActionBase
from torchrl_vla.transforms.placement import acts_in_environment


class RobotConversion(Transform):
    """Convert data of one robot convention to another, and actions back.

    Dimensions are put in the target's order, units and gripper ranges are scaled,
    rotations change their layout, actions are made absolute or measured anew, chunks
    are resampled to the target's control rate: whatever two metadata records declare
    differently. On a dataset, sampled data of the source become data of the target, and
    what is written stays as it is. In an environment of the source, the policy sees
    states of the target, and what it says in the target's convention reaches the robot
    in its own. ``source.conversion_to(target)`` makes one.

    Note:
        Relative actions are measured from ``action_base``, which the way in leaves in
        the tensordict for the way back; deltas from ``previous_action``, which
        :class:`PreviousAction` writes in an environment. In an environment, relative
        and resampled actions have to come as whole chunks (``MultiAction`` inside);
        executors take ``ConvertedPolicy(policy, conversion)`` instead.

    **Reads**, in the source's convention, whichever are there: ``action`` and
    ``expert_action`` float ``[*B, A]``, ``action_chunk`` float ``[*B, H, A]`` with
    ``action_is_pad`` bool ``[*B, H]``, ``("observation", "state")`` float ``[*B, S]``
    (also of ``next`` and of ``observation_history``) and ``previous_action`` ``[*B,
    A]``. **Writes** them in the target's, except ``previous_action``, and
    ``action_base`` float ``[*B, A]`` where actions are relative.

    Args:
        source: of the data, or of the environment.
        target: of the data that are wanted, or of the policy.

    Keyword Args:
        keys: of what is converted; None = ``ConversionKeys()``.

    Raises:
        IncompatibleMetadataError: lists the differences that have no conversion.
        MissingKeyError: there is nothing to convert, what actions are measured from is
            missing, or relative actions or another rate come without whole chunks.
        SchemaError: a width is not what the metadata say, or numbers are no rotation.
        SpaceError: an environment takes single actions where whole chunks are needed,
            or what reaches it is normalized, or not in the source's conventions.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> degrees = RobotDatasetMetadata(
        ...     "a", action_names=("x", "y"), action_units="deg"
        ... )
        >>> radians = RobotDatasetMetadata(
        ...     "b", action_names=("y", "x"), action_units="rad"
        ... )
        >>> conversion = degrees.conversion_to(radians)
        >>> data = TensorDict({"action": torch.tensor([[180.0, 0.0]])}, [1])
        >>> conversion(data)["action"]
        tensor([[0.0000, 3.1416]])
        >>> conversion.to_source(conversion(data))["action"]
        tensor([[180.,   0.]])
    """

    def __init__(
        self,
        source: RobotDatasetMetadata,
        target: RobotDatasetMetadata,
        *,
        keys: ConversionKeys | None = None,
    ) -> None:
        keys = ConversionKeys() if keys is None else keys
        plan = ConversionPlan(source, target)
        problems = plan.problems or differences(converted_metadata(plan), target)
        if problems:
            raise IncompatibleMetadataError(
                f"RobotConversion: expected {source.dataset_id!r} to be convertible to "
                f"{target.dataset_id!r}, got {len(problems)} difference(s) without a "
                "conversion:\n  - "
                + "\n  - ".join(problems)
                + "\nCorrect the metadata "
                "that are wrong, or convert these yourself."
            )
        in_keys = [keys.action, keys.expert_action, keys.chunk, keys.state]
        super().__init__(
            in_keys=in_keys,
            out_keys=in_keys,
            in_keys_inv=[keys.action],
            out_keys_inv=[keys.action],
        )
        self.keys = keys
        self.plan = plan
        self.metadata = converted_metadata(plan)
        self.actions, self.states = plan.actions, plan.states
        self.before, self.after = plan.before, plan.after
        indices = torch.tensor([index for index, _ in plan.state_of_action])
        factors = torch.tensor([f for _, f in plan.state_of_action]).double()
        self.register_buffer("_base_index", indices.long(), persistent=False)
        self.register_buffer("_base_factor", factors, persistent=False)
        self._acting_keys: list[NestedKey] | None = None

    @property
    def needs_state(self) -> bool:
        """True = some actions are measured from the state, on either side."""
        return self.before.needs_state or self.after.needs_state

    @property
    def changes(self) -> list[str]:
        """One line per declaration that differs behind the conversion."""
        return changed_fields(self.plan.source, self.metadata)

    @property
    def needs_chunks(self) -> bool:
        """True = single actions say too little: relative to one state, or resampled."""
        return self.needs_state or self.plan.rate_ratio != 1.0

    @property
    def base_keys(self) -> list[NestedKey]:
        """What actions are measured from, in data of the source."""
        needs_previous = self.before.needs_previous or self.after.needs_previous
        state = [self.keys.state] if self.needs_state else []
        return [*state, PREVIOUS_ACTION_KEY] if needs_previous else state

    def convert_statistics(self, statistics: FeatureStatistics) -> FeatureStatistics:
        """Return statistics of the converted actions, exactly.

        Raises:
            MetadataError: they do not follow from the source's (rotations change their
                layout, actions their reference or their rate).
        """
        if not self.plan.is_affine or self.actions is None:
            raise MetadataError(
                "RobotConversion.convert_statistics: expected a conversion of order, "
                "units and ranges, got one of rotations, references or rates, after "
                "which the statistics are others. Compute them from converted data "
                "with FeatureStatistics.from_samples."
            )
        return self.actions.convert_statistics(statistics)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Convert sampled data of the source to the target's convention."""
        check_place(self)
        return self.to_target(tensordict)

    def to_target(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return data in the target's convention; undone by :meth:`to_source`."""
        if all(tensordict.get(key, None) is None for key in self.in_keys):
            raise MissingKeyError(
                f"RobotConversion: expected one of {self.in_keys} in the data, got "
                f"{sorted(map(str, tensordict.keys(True, True)))}."
            )
        single = [k for k in self.in_keys[:2] if tensordict.get(k, None) is not None]
        if (
            self.needs_chunks
            and single
            and tensordict.get(self.keys.chunk, None) is None
        ):
            raise MissingKeyError(
                f"RobotConversion: expected chunks at {self.keys.chunk!r}, which are "
                "measured from the state they begin in and keep their rate, got only "
                f"{single}. Put the conversion after ActionChunkTransform(chunk_size)."
            )
        tensordict = self.observations_to_target(tensordict)
        return self._map_actions(tensordict, to_target=True)

    def observations_to_target(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return data whose observations alone are converted: a policy's inputs."""
        tensordict = tensordict.copy()  # buffer[:] hands out the storage itself
        self._leave_base(tensordict)
        if self.states is not None:
            self._map_states(tensordict, self.states.to_target)
        return tensordict

    def to_source(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return data of :meth:`to_target` in the source's convention."""
        tensordict = self.actions_to_source(tensordict)
        if self.states is not None:
            self._map_states(tensordict, self.states.to_source)
        return tensordict

    def actions_to_source(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return data whose actions alone are converted back: a policy's outputs."""
        return self._map_actions(tensordict.copy(), to_target=False)

    def _map_states(
        self, tensordict: TensorDictBase, convert: Callable[[Tensor], Tensor]
    ) -> None:
        state = unravel_key(self.keys.state)
        name = state if isinstance(state, str) else state[-1]
        for key in (state, ("next", state), (HISTORY_KEY, name)):
            value = tensordict.get(unravel_key(key), None)
            if value is not None:
                check_entry(key, value, self.plan.source.state_dim)
                tensordict.set(unravel_key(key), convert(value))

    def _leave_base(self, tensordict: TensorDictBase) -> None:
        if not self.needs_state:
            return
        state = tensordict.get(self.keys.state, None)
        if state is None:
            raise MissingKeyError(
                "RobotConversion: expected the state that actions are measured from at "
                f"{self.keys.state!r}, got only "
                f"{sorted(map(str, tensordict.keys(True, True)))}."
            )
        check_entry(self.keys.state, state, self.plan.source.state_dim)
        base = state[..., self._base_index].double() * self._base_factor
        tensordict.set(ACTION_BASE_KEY, base.to(state.dtype))

    def _map_actions(
        self,
        tensordict: TensorDictBase,
        *,
        to_target: bool,
        keys: list[NestedKey] | None = None,
    ) -> TensorDictBase:
        convert = self._actions_to_target if to_target else self._actions_to_source
        size = None
        if self.actions is not None:
            size = self.actions.source_dim if to_target else self.actions.target_dim
        timed = self.plan.changes_reference or self.plan.rate_ratio != 1.0
        for key in self.in_keys[:3] if keys is None else keys:
            value = tensordict.get(key, None)
            if value is None:
                continue
            in_chunks = key == self.keys.chunk
            ndim = tensordict.ndim + (2 if in_chunks else 1)
            check_entry(key, value, size, ndim if timed else None)
            if not in_chunks:
                one, _ = convert(tensordict, value.unsqueeze(-2), None)
                tensordict.set(key, one.squeeze(-2))
                continue
            is_pad = tensordict.get(self.keys.is_pad, None)
            if is_pad is not None:
                check_pad_mask(self.keys.is_pad, is_pad, value)
            chunk, is_pad = convert(tensordict, value, is_pad)
            tensordict.set(key, chunk)
            if is_pad is not None:
                tensordict.set(self.keys.is_pad, is_pad)
        return tensordict

    def _actions_to_target(
        self, tensordict: TensorDictBase, chunk: Tensor, is_pad: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        ours, theirs = self._bases(tensordict)
        chunk = self.before.to_absolute(chunk, ours, is_pad)
        if self.actions is not None:
            chunk = self.actions.to_target(chunk)
        chunk, is_pad = self._resample(chunk, is_pad, self.plan.rate_ratio)
        return self.after.from_absolute(chunk, theirs, is_pad), is_pad

    def _actions_to_source(
        self, tensordict: TensorDictBase, chunk: Tensor, is_pad: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        ours, theirs = self._bases(tensordict)
        chunk = self.after.to_absolute(chunk, theirs, is_pad)
        chunk, is_pad = self._resample(chunk, is_pad, 1 / self.plan.rate_ratio)
        if self.actions is not None:
            chunk = self.actions.to_source(chunk)
        return self.before.from_absolute(chunk, ours, is_pad), is_pad

    def _resample(
        self, chunk: Tensor, is_pad: Tensor | None, ratio: float
    ) -> tuple[Tensor, Tensor | None]:
        if ratio == 1.0:
            return chunk, is_pad
        return resample_chunk(chunk, is_pad, ratio, self.plan.rotations)

    def _bases(self, tensordict: TensorDictBase) -> tuple[ActionBase, ActionBase]:
        """Return what actions are measured from, state and command, on both sides."""
        if not self.plan.changes_reference or self.actions is None:
            return ActionBase(), ActionBase()
        ours = ActionBase(
            tensordict.get(ACTION_BASE_KEY, None),
            tensordict.get(PREVIOUS_ACTION_KEY, None),
        )
        return ours, self.after.map_base(ours, self.actions.bases_to_target)

    # In an environment of the source.

    def empty_cache(self) -> None:
        """Forget what is known of the environment, which has another transform now."""
        self._acting_keys = None
        super().empty_cache()

    def set_container(self, container: Transform | EnvBase) -> None:
        """Attach to a ``Compose`` or an environment."""
        self._acting_keys = None
        super().set_container(container)
        check_place(self)

    def _inv_call(self, tensordict: TensorDictBase) -> TensorDictBase:
        if not acts_in_environment(self):
            return tensordict  # written to a buffer: data stay as they are
        if self._acting_keys is None:
            self.container.input_spec  # noqa: B018 (transform_action_spec finds them)
        missing = [
            k for k in self._acting_keys or () if tensordict.get(k, None) is None
        ]
        if missing:
            raise MissingKeyError(
                f"RobotConversion: expected an action at {missing}, got only "
                f"{sorted(map(str, tensordict.keys(True, True)))}."
            )
        return self._map_actions(tensordict, to_target=False, keys=self._acting_keys)

    def _call(self, next_tensordict: TensorDictBase) -> TensorDictBase:
        self._leave_base(next_tensordict)
        if self.states is not None:
            self._map_states(next_tensordict, self.states.to_target)
        return next_tensordict

    def _reset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        return self._call(tensordict_reset)

    def transform_action_spec(self, action_spec: Composite) -> Composite:
        """Describe the action in the target's convention.

        Raises:
            SpaceError: there is no such action, or single ones where chunks are needed.
        """
        check_place(self)
        action_spec = action_spec.clone()
        acting = acting_keys(action_spec, self.keys, needs_chunks=self.needs_chunks)
        for key in acting:
            action_spec[key] = converted_action_leaf(
                action_spec[key], self.plan, self.metadata
            )
        self._acting_keys = acting
        return action_spec

    def transform_observation_spec(self, observation_spec: Composite) -> Composite:
        """Describe the state in the target's convention, and ``action_base``."""
        observation_spec = observation_spec.clone()
        key = unravel_key(self.keys.state)
        if key not in observation_spec.keys(True, True):
            return observation_spec
        leaf = observation_spec[key]
        if self.needs_state:
            observation_spec[ACTION_BASE_KEY] = Unbounded(
                (*leaf.shape[:-1], len(self._base_index)),
                device=leaf.device,
                dtype=leaf.dtype,
            )
        if self.states is not None and not isinstance(leaf, Unbounded):
            low, high = self.states.convert_range(leaf.space.low, leaf.space.high)
            observation_spec[key] = Bounded(
                low=low,
                high=high,
                shape=leaf.shape,
                device=leaf.device,
                dtype=leaf.dtype,
            )
        return observation_spec

    def __repr__(self) -> str:
        ours, theirs = self.plan.source.dataset_id, self.plan.target.dataset_id
        return f"RobotConversion({ours!r} -> {theirs!r})"
