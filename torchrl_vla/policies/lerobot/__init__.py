"""LeRobot's policies, with their own processors, as policies of ours."""

from torchrl_vla.policies.lerobot.load.registry import KINDS, PolicyKind
from torchrl_vla.policies.lerobot.load.untrained import (
    lerobot_statistics,
    make_lerobot_policy,
)
from torchrl_vla.policies.lerobot.run.flow import LeRobotFlowPolicy
from torchrl_vla.policies.lerobot.run.flow_distribution import LeRobotFlowDistribution
from torchrl_vla.policies.lerobot.run.policy_wrapper import LeRobotPolicyWrapper

__all__ = [
    "KINDS",
    "LeRobotFlowDistribution",
    "LeRobotFlowPolicy",
    "LeRobotPolicyWrapper",
    "PolicyKind",
    "lerobot_statistics",
    "make_lerobot_policy",
]
