"""LeRobot's policies, with their own processors, as policies of ours."""

from torchrl_vla.policies.lerobot.flow import LeRobotFlowPolicy
from torchrl_vla.policies.lerobot.flow_distribution import LeRobotFlowDistribution
from torchrl_vla.policies.lerobot.kinds import KINDS, PolicyKind
from torchrl_vla.policies.lerobot.untrained import (
    lerobot_statistics,
    make_lerobot_policy,
)
from torchrl_vla.policies.lerobot.wrapper import LeRobotPolicyWrapper

__all__ = [
    "KINDS",
    "LeRobotFlowDistribution",
    "LeRobotFlowPolicy",
    "LeRobotPolicyWrapper",
    "PolicyKind",
    "lerobot_statistics",
    "make_lerobot_policy",
]
