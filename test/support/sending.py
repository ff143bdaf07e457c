"""A deployment that changes what a policy sends, for the tests of the doctor."""

from __future__ import annotations

from torchrl_vla.execution import PolicyWrapper


class Sending(PolicyWrapper):
    """A deployment that changes the chunk on its way to the robot."""

    def __init__(self, policy, change):
        super().__init__(policy)
        self.change = change

    def forward(self, tensordict):
        out = self.policy(tensordict)
        return out.set("action_chunk", self.change(out["action_chunk"]))
