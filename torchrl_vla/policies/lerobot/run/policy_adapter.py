"""Protocol between LeRobotPolicyWrapper and the object that it wraps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Literal, TypeAlias

from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torchrl.envs import Transform

from torchrl_vla.policies.lerobot.lerobot_types import Config
from torchrl_vla.policies.lerobot.load.pipeline import LeRobotPipeline
from torchrl_vla.policies.lerobot.run.observation_batch import ObservationReader
from torchrl_vla.schema import RobotDatasetMetadata

if TYPE_CHECKING:
    from torchrl_vla.policies.lerobot.run.pretrained_policy import PretrainedPolicy


#: Where a policy's random numbers come from: ``noise_seed`` where it is, PyTorch's
#: global generator, or nowhere, as it draws none.
NoiseSource: TypeAlias = Literal["noise_seed", "torch", "none"]


class PolicyAdapter(ABC):
    """Predict chunks with a wrapped object, and describe it.

    Abstract: :class:`CallablePolicy` calls any object with a batch dictionary,
    :class:`PretrainedPolicy` a policy of LeRobot's between its processors.

    Args:
        name: of the wrapped object's class, for errors.
        action_dim: ``A``.
        chunk_size: ``H``.
        reader: reads the inputs.
    """

    #: LeRobot's configuration of the policy; None = it is none of LeRobot's.
    config: Config | None = None
    #: Processors, cameras and precision of a policy of LeRobot's; None for others.
    pipeline: LeRobotPipeline | None = None
    #: Where its random numbers come from; None = unknown.
    noise_source: NoiseSource | None = None
    #: Observations that it reads, the current one included.
    history_size: int = 1
    #: True = LeRobot's loss of this policy leaves padded actions out.
    masks_padding: bool = False
    #: ``(horizon, A)`` of the plan that it carries between calls; None = no plan.
    plan_shape: tuple[int, int] | None = None

    def __init__(
        self, name: str, action_dim: int, chunk_size: int, reader: ObservationReader
    ) -> None:
        self.name = name
        self.action_dim = action_dim
        self.chunk_size = chunk_size
        self.reader = reader
        self.in_keys = reader.keys.present
        self.optional_in_keys: list[NestedKey] = []
        self.n_action_steps = chunk_size
        self.target_steps = range(chunk_size)
        self.metadata = RobotDatasetMetadata(name, action_dim=action_dim)

    @abstractmethod
    def predict(self, tensordict: TensorDictBase) -> tuple[object, Tensor | None]:
        """Return chunks ``[N, H, A]`` and plans ``[N, horizon, A]``, if it makes any.

        The chunks are as the object returned them; the wrapper checks them.
        """

    @abstractmethod
    def as_pretrained(self, caller: str) -> PretrainedPolicy:
        """Return itself, if it is a policy of LeRobot's.

        Raises:
            SchemaError: it is not; the message begins with ``caller``.
        """

    def environment_transforms(self) -> list[Transform]:
        """Return what the environment carries from step to step for the policy."""
        return []
