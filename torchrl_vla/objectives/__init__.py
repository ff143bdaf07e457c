"""What training minimizes."""

from torchrl_vla.objectives.bc import BCLoss
from torchrl_vla.objectives.lerobot import LeRobotLoss
from torchrl_vla.objectives.token_bc import TokenBCLoss

__all__ = ["BCLoss", "LeRobotLoss", "TokenBCLoss"]
