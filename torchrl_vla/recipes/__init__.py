"""Whole jobs, composed of the parts: train, save, load, and the demo."""

from torchrl_vla.recipes.behavior_cloning import train_behavior_cloning
from torchrl_vla.recipes.checkpoint import (
    load_actor,
    make_policy,
    prepare_environment,
    save_checkpoint,
    save_lerobot_checkpoint,
)
from torchrl_vla.recipes.datasets import open_dataset
from torchrl_vla.recipes.demo import DEMO_SETTINGS, DemoSettings, run_demo
from torchrl_vla.recipes.environments import (
    ENVIRONMENTS,
    EnvironmentName,
    ExpertEnvironmentName,
    make_environment,
)
from torchrl_vla.recipes.lerobot_training import fit_lerobot_policy, train_lerobot
from torchrl_vla.recipes.model_space import ModelSpace, RobotSpacePolicy
from torchrl_vla.recipes.report import write_report
from torchrl_vla.recipes.training_loop import TrainingLog

__all__ = [
    "DEMO_SETTINGS",
    "ENVIRONMENTS",
    "DemoSettings",
    "EnvironmentName",
    "ExpertEnvironmentName",
    "ModelSpace",
    "RobotSpacePolicy",
    "TrainingLog",
    "fit_lerobot_policy",
    "load_actor",
    "make_environment",
    "make_policy",
    "open_dataset",
    "prepare_environment",
    "run_demo",
    "save_checkpoint",
    "save_lerobot_checkpoint",
    "train_behavior_cloning",
    "train_lerobot",
    "write_report",
]
