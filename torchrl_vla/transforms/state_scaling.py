"""Normalization of the state, from robot space to model space."""

from __future__ import annotations

from collections.abc import Sequence

from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torchrl.data import Composite

from torchrl_vla.schema import (
    STATE_KEY,
    FeatureStatistics,
    MissingKeyError,
    RobotDatasetMetadata,
)
from torchrl_vla.transforms.affine_scaling import AffineScaling
from torchrl_vla.transforms.placement import convert_next


class StateScaling(AffineScaling):
    """Normalize the robot's state, in data and in an environment alike.

    The policy sees the same numbers in training and in action. In data, the state
    under ``next`` is normalized with it, so that the two stay comparable. The inverse
    does nothing: a state goes only one way.

    **Reads** robot space and **writes** model space, at ``("observation", "state")``
    float ``[*B, S]`` and, where it is there, ``("next", "observation", "state")``.

    Args:
        loc: a number or ``[S]``, in the state's unit.
        scale: a number or ``[S]``, positive, in the state's unit.

    Keyword Args:
        mask: bool ``[S]``, True = scale this dimension. None = all.
        in_keys: keys to normalize.

    Raises:
        ValueError: see :meth:`from_stats`.
        MissingKeyError: a key is missing.
        SchemaError: the last dimension is not ``S``, or the dtype is not floating.
        SpaceError: another scaling beside it scales the same key.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> scaling = StateScaling.from_stats(
        ...     low=torch.tensor([0.0, 0.0]), high=torch.tensor([1.0, 4.0])
        ... )
        >>> state = torch.tensor([[1.0, 2.0]])
        >>> data = TensorDict({"observation": {"state": state}}, [1])
        >>> scaling(data)["observation", "state"]
        tensor([[1., 0.]])
    """

    def __init__(
        self,
        loc: Tensor | float,
        scale: Tensor | float,
        *,
        mask: Tensor | Sequence[bool] | None = None,
        in_keys: Sequence[NestedKey] = (STATE_KEY,),
    ) -> None:
        super().__init__(
            loc, scale, mask, in_keys=list(in_keys), out_keys=list(in_keys)
        )

    @staticmethod
    def _from(
        metadata: RobotDatasetMetadata,
    ) -> tuple[FeatureStatistics | None, Tensor | None]:
        return metadata.state_statistics, None

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Normalize the states of sampled data, now and next."""
        self._check_scaled_once(in_data=True, in_environment=False)
        tensordict = tensordict.copy()  # buffer[:] hands out the storage itself
        return convert_next(self._call(tensordict), self.in_keys, self.normalize)

    def _call(self, next_tensordict: TensorDictBase) -> TensorDictBase:
        for key in self.in_keys:
            value = next_tensordict.get(key, None)
            if value is None:
                raise MissingKeyError(
                    f"StateScaling: expected a state at {key!r}, got nothing. "
                    "Available: "
                    f"{sorted(map(str, next_tensordict.keys(True, True)))}."
                )
            next_tensordict.set(key, self.normalize(value))
        return next_tensordict

    def _reset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        return self._call(tensordict_reset)

    def transform_observation_spec(self, observation_spec: Composite) -> Composite:
        """Describe the state in model space."""
        return self._normalized_spec(observation_spec, self.in_keys)
