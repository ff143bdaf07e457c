"""Critic on the features of a vision-language trunk."""

from __future__ import annotations

import copy

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

from torchrl_vla.policies.tiny.backbone import fill_rows
from torchrl_vla.policies.tiny.tiny_critic import VALUE_KEY
from torchrl_vla.policies.vlm.prefix import Prefix
from torchrl_vla.policies.vlm.trunk import VLATrunk
from torchrl_vla.schema import InstructionTable


class VLMCritic(TensorDictModuleBase):
    """Estimate the return from what a vision-language trunk makes of an observation.

    The mean and the last of the prompt's states, and the state where the trunk does not
    read it, go through a small network. Its first estimate is 0 everywhere.

    **Reads** what the trunk reads. **Writes** ``state_value`` float ``[*B, 1]``.

    Args:
        trunk: the policy's, or one of its own.

    Keyword Args:
        shares_trunk: True = the trunk is the policy's: it is read as it is at each
            time, without a gradient, and its weights are not the critic's. False = the
            critic trains it.
        hidden: width of the network.
        value_key: where the estimate is written.
    """

    def __init__(
        self,
        trunk: VLATrunk,
        *,
        shares_trunk: bool = True,
        hidden: int = 256,
        value_key: NestedKey = VALUE_KEY,
    ) -> None:
        super().__init__()
        self._shared = _Shared(trunk) if shares_trunk else None
        if not shares_trunk:
            self.own_trunk = trunk
        self.in_keys, self.out_keys = trunk.keys.present, [value_key]
        config = trunk.config
        self._reads_state = config.state == "head" and config.state_dim is not None
        size = 2 * trunk.hidden_size + (config.state_dim or 0) * self._reads_state
        self.entry = nn.Linear(size, hidden)
        self.norm = nn.LayerNorm(2 * trunk.hidden_size)
        self.out = nn.Linear(hidden, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.to(trunk.device)

    @classmethod
    def with_own_trunk(cls, trunk: VLATrunk, *, hidden: int = 256) -> VLMCritic:
        """Make a critic that trains a copy of a trunk."""
        return cls(copy.deepcopy(trunk), shares_trunk=False, hidden=hidden)

    @property
    def trunk(self) -> VLATrunk:
        """The trunk that is read."""
        return self.own_trunk if self._shared is None else self._shared.trunk

    @property
    def instructions(self) -> InstructionTable | None:
        """The table that gives instruction ids their texts."""
        return self.trunk.instructions

    @instructions.setter
    def instructions(self, table: InstructionTable | None) -> None:
        self.trunk.instructions = table

    def value(self, tensordict: TensorDictBase) -> Tensor:
        """Return the estimate, ``[*B, 1]``."""
        trunk = self.trunk
        trains = torch.is_grad_enabled() and self._shared is None
        with torch.set_grad_enabled(trains):
            rows = _summary(trunk.encode(tensordict))
        n, rows = len(rows), self.norm(fill_rows(rows))
        if self._reads_state:
            state = trunk.rows.state(tensordict).to(rows.device)
            rows = torch.cat([rows, fill_rows(state)], -1)
        value = self.out(torch.relu(self.entry(rows)))[:n]
        return value.reshape(*tensordict.batch_size, 1)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the estimate."""
        return tensordict.set(self.out_keys[0], self.value(tensordict))


class _Shared:
    """Hold a trunk that is not a part of the critic, and is not copied with it."""

    def __init__(self, trunk: VLATrunk) -> None:
        self.trunk = trunk

    def __deepcopy__(self, memo: dict) -> _Shared:
        return self


def _summary(prefix: Prefix) -> Tensor:
    """Return the mean and the last state of each row's tokens, ``[N, 2 F]``."""
    places = torch.arange(prefix.mask.shape[1], device=prefix.mask.device)
    last = (places * prefix.mask).argmax(1)
    rows = torch.arange(len(last), device=last.device)
    return torch.cat([prefix.features, prefix.states[rows, last]], -1)
