"""Random wording of each sampled frame's instruction."""

from __future__ import annotations

import torch
from tensordict import NestedKey, TensorDictBase
from torchrl.envs import Transform

from torchrl_vla.schema import INSTRUCTION_KEY, MissingKeyError, Wordings


class InstructionWording(Transform):
    """Reword the instructions of sampled frames, each frame anew.

    A policy that is trained on one sentence per task learns that sentence. The wording
    is drawn when a frame is sampled, from PyTorch's generator, so a training that is
    seeded or resumed draws the same ones.

    **Reads** and **writes** ``language_instruction`` int64 ids ``[*B]``.

    Args:
        wordings: of every instruction in the data.

    Keyword Args:
        instruction_key: where the ids are.

    Raises:
        MissingKeyError: there are no ids.
        UnknownInstructionError: an instruction has no wordings.

    Examples:
        >>> from tensordict import TensorDict
        >>> wordings = Wordings({"pick": ["grasp"]})
        >>> ids = wordings.table.encode(["pick", "pick"])
        >>> data = TensorDict(language_instruction=ids, batch_size=[2])
        >>> out = InstructionWording(wordings)(data)["language_instruction"]
        >>> wordings.table.decode(out)
        ['grasp', 'grasp']
    """

    def __init__(
        self, wordings: Wordings, *, instruction_key: NestedKey = INSTRUCTION_KEY
    ) -> None:
        super().__init__(in_keys=[instruction_key], out_keys=[instruction_key])
        self.wordings = wordings

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the frames with other wordings."""
        ids = tensordict.get(self.in_keys[0], None)
        if not torch.is_tensor(ids):
            raise MissingKeyError(
                f"InstructionWording: expected int64 ids at {self.in_keys[0]!r}, got "
                f"{type(ids).__name__}. Turn text into ids with "
                "InstructionTable.encode."
            )
        numbers = torch.rand(ids.shape, device=ids.device)
        tensordict = tensordict.copy()  # buffer[:] hands out the storage itself
        return tensordict.set(self.out_keys[0], self.wordings.draw(ids, numbers))
