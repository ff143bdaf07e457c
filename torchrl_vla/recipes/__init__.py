"""Whole jobs, composed of the parts: train, save, load, and the demo."""

from torchrl_vla.recipes.behavior_cloning import TrainingLog, train_behavior_cloning
from torchrl_vla.recipes.checkpoint import load_actor, make_policy, save_checkpoint
from torchrl_vla.recipes.demo import DEMO_SETTINGS, DemoSettings, run_demo
from torchrl_vla.recipes.environments import (
    ENVIRONMENTS,
    EnvironmentName,
    ExpertEnvironmentName,
    make_environment,
)
from torchrl_vla.recipes.model_space import ModelSpace, RobotSpacePolicy
from torchrl_vla.recipes.report import write_report

__all__ = [
    "DEMO_SETTINGS",
    "ENVIRONMENTS",
    "DemoSettings",
    "EnvironmentName",
    "ExpertEnvironmentName",
    "ModelSpace",
    "RobotSpacePolicy",
    "TrainingLog",
    "load_actor",
    "make_environment",
    "make_policy",
    "run_demo",
    "save_checkpoint",
    "train_behavior_cloning",
    "write_report",
]
