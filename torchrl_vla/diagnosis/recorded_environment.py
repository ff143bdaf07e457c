"""Environment that replays recorded frames."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Binary, Composite, Unbounded
from torchrl.envs import EnvBase
from torchrl.envs.utils import make_composite_from_td

from torchrl_vla._internal.constructor_signature import ConstructorSignature
from torchrl_vla.schema import (
    ACTION_KEY,
    INSTRUCTION_KEY,
    OBSERVATION_KEY,
    InstructionTable,
    RobotDatasetMetadata,
)

#: What a deployment does to an observation ``[N]`` before the executor reads it.
Observe = Callable[[TensorDictBase], TensorDictBase]


class RecordedEnvironment(EnvBase):
    """Replay recorded frames as a robot would send them, whatever the action is.

    **Reads** ``action`` ``[N, A]``, which changes nothing. **Writes** the frames'
    ``observation`` and ``language_instruction``; the last frame repeats.

    Args:
        frames: ``[T, N]``, ``N`` episodes side by side.
        metadata: of the robot that it stands for.
        instructions: the texts of the frames' ids.
        observe: applied to every observation ``[N]``; None = they stay as they are.
    """

    __signature__ = ConstructorSignature()

    def __init__(
        self,
        frames: TensorDictBase,
        metadata: RobotDatasetMetadata,
        instructions: InstructionTable,
        observe: Observe | None = None,
    ) -> None:
        super().__init__(batch_size=frames.batch_size[1:])
        self.metadata, self.instructions = metadata, instructions
        self._frames, self._observe = frames, observe
        self._row = 0
        batch = self.batch_size
        action = frames.get(ACTION_KEY)
        self.observation_spec = make_composite_from_td(
            self._observation(), unsqueeze_null_shapes=False
        )
        self.action_spec = Composite(
            {ACTION_KEY: Unbounded(action.shape[1:])}, shape=batch
        )
        self.reward_spec = Unbounded((*batch, 1))
        self.done_spec = Binary(shape=(*batch, 1), dtype=torch.bool)

    def _observation(self) -> TensorDictBase:
        frame = self._frames[min(self._row, len(self._frames) - 1)].contiguous()
        frame = frame.select(OBSERVATION_KEY, INSTRUCTION_KEY, strict=False)
        return frame if self._observe is None else self._observe(frame.clone())

    def _reset(
        self, tensordict: TensorDictBase | None = None, **options: object
    ) -> TensorDictBase:
        self._row = 0
        done = torch.zeros((*self.batch_size, 1), dtype=torch.bool)
        return self._observation().set("done", done)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self._row += 1
        nothing = torch.zeros(*self.batch_size, 1)
        out = TensorDict({"reward": nothing, "done": nothing.bool()}, self.batch_size)
        return out.update(self._observation())

    def _set_seed(self, seed: int | None) -> None:
        """Do nothing: frames are recorded."""
