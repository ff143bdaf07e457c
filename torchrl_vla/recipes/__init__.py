"""Whole jobs, composed of the parts: train, save, load, and the demo."""

from torchrl_vla.recipes.behavior_cloning import (
    make_training_transform,
    train_behavior_cloning,
)
from torchrl_vla.recipes.checkpoints import (
    load_checkpoint,
    load_executor,
    prepare_environment,
    save_checkpoint,
)
from torchrl_vla.recipes.demo.demo import DEMO_SETTINGS, DemoSettings, run_demo
from torchrl_vla.recipes.demo.report import write_report
from torchrl_vla.recipes.environment_registry import (
    ENVIRONMENTS,
    EnvironmentName,
    ExpertEnvironmentName,
    make_environment,
)
from torchrl_vla.recipes.finetuning.algorithms import (
    ALGORITHMS,
    GRPO,
    PPO,
    RLOO,
    Algorithm,
)
from torchrl_vla.recipes.finetuning.finetune import FinetuneResult, finetune
from torchrl_vla.recipes.finetuning.finetune_settings import (
    FinetuneSettings,
    SettingsError,
)
from torchrl_vla.recipes.finetuning.rollouts import (
    Reward,
    Rollouts,
    WorkerRollouts,
    make_decision_env,
)
from torchrl_vla.recipes.finetuning.run_log import RunLog
from torchrl_vla.recipes.finetuning.training_state import ResumeError, TrainingState
from torchrl_vla.recipes.lerobot_training import fit_lerobot_policy, train_lerobot
from torchrl_vla.recipes.model_space import ModelSpace, RobotSpacePolicy
from torchrl_vla.recipes.open_dataset import open_dataset
from torchrl_vla.recipes.policy_factory import (
    Head,
    make_cloning_loss,
    make_policy,
    make_space,
    to_stochastic,
)
from torchrl_vla.recipes.training_loop import TrainingLog

__all__ = [
    "ALGORITHMS",
    "DEMO_SETTINGS",
    "ENVIRONMENTS",
    "GRPO",
    "PPO",
    "RLOO",
    "Algorithm",
    "DemoSettings",
    "EnvironmentName",
    "ExpertEnvironmentName",
    "FinetuneResult",
    "FinetuneSettings",
    "Head",
    "ModelSpace",
    "ResumeError",
    "Reward",
    "RobotSpacePolicy",
    "Rollouts",
    "RunLog",
    "SettingsError",
    "TrainingLog",
    "TrainingState",
    "WorkerRollouts",
    "finetune",
    "fit_lerobot_policy",
    "load_checkpoint",
    "load_executor",
    "make_cloning_loss",
    "make_decision_env",
    "make_environment",
    "make_policy",
    "make_space",
    "make_training_transform",
    "open_dataset",
    "prepare_environment",
    "run_demo",
    "save_checkpoint",
    "to_stochastic",
    "train_behavior_cloning",
    "train_lerobot",
    "write_report",
]
