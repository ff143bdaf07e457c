"""LeRobot policies, with their own processors, as VLA policies."""

from torchrl_vla.policies.lerobot.lerobot_folder import (
    is_lerobot_folder,
    load_lerobot_policy,
    read_lerobot_folder,
)
from torchrl_vla.policies.lerobot.load.pipeline import LeRobotPipeline
from torchrl_vla.policies.lerobot.load.robot_fit import RobotFit
from torchrl_vla.policies.lerobot.registry import KINDS, PolicyKind, kind_of
from torchrl_vla.policies.lerobot.run.flow_distribution import LeRobotFlowDistribution
from torchrl_vla.policies.lerobot.run.flow_policy import LeRobotFlowPolicy
from torchrl_vla.policies.lerobot.run.policy_wrapper import LeRobotPolicyWrapper
from torchrl_vla.policies.lerobot.untrained import make_lerobot_policy

__all__ = [
    "KINDS",
    "LeRobotFlowDistribution",
    "LeRobotFlowPolicy",
    "LeRobotPipeline",
    "LeRobotPolicyWrapper",
    "PolicyKind",
    "RobotFit",
    "is_lerobot_folder",
    "kind_of",
    "load_lerobot_policy",
    "make_lerobot_policy",
    "read_lerobot_folder",
]
