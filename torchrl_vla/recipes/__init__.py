"""Whole jobs, composed of the parts: train, save, load, fine-tune, and the demo.

Names are imported when they are first used: settings need no PyTorch.
"""

from typing import TYPE_CHECKING

from torchrl_vla._internal.lazy_package import lazy_names

if TYPE_CHECKING:
    from torchrl_vla.envs.known_environments import (
        ENVIRONMENTS,
        EnvironmentName,
        ExpertEnvironmentName,
    )
    from torchrl_vla.errors import ActionProviderError, ResumeError, SettingsError
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
    from torchrl_vla.recipes.dataset_opening import open_dataset
    from torchrl_vla.recipes.dataset_options import DatasetOptions
    from torchrl_vla.recipes.demo.demo import run_demo
    from torchrl_vla.recipes.demo.demo_settings import DEMO_SETTINGS, DemoSettings
    from torchrl_vla.recipes.demo.report import write_report
    from torchrl_vla.recipes.encoded_demonstrations import (
        EncodedDemonstrations,
        encode_images,
    )
    from torchrl_vla.recipes.environment_options import EnvironmentOptions
    from torchrl_vla.recipes.environment_registry import make_environment
    from torchrl_vla.recipes.executor_options import ExecutorOptions
    from torchrl_vla.recipes.finetuning.algorithms import (
        ALGORITHMS,
        GRPO,
        PPO,
        RLOO,
        Algorithm,
    )
    from torchrl_vla.recipes.finetuning.finetune import FinetuneResult, finetune
    from torchrl_vla.recipes.finetuning.finetune_settings import FinetuneSettings
    from torchrl_vla.recipes.finetuning.off_policy_algorithms import (
        OFF_POLICY,
        QC,
        RLPD,
        NoiseSpace,
        OffPolicy,
        Residual,
    )
    from torchrl_vla.recipes.finetuning.rollouts import (
        Reward,
        Rollouts,
        WorkerRollouts,
        make_decision_env,
    )
    from torchrl_vla.recipes.finetuning.run_log import RunLog
    from torchrl_vla.recipes.lerobot_training import fit_lerobot_policy, train_lerobot
    from torchrl_vla.recipes.policy_factory import (
        Head,
        make_cloning_loss,
        make_policy,
        make_space,
        to_stochastic,
    )
    from torchrl_vla.recipes.provider.action_provider import ActionProvider
    from torchrl_vla.recipes.provider.action_request import ActionRequest
    from torchrl_vla.recipes.provider.action_result import (
        ActionResult,
        RawActionSummary,
        summarize_actions,
    )
    from torchrl_vla.recipes.provider.provider_events import ProviderEvent
    from torchrl_vla.recipes.provider.runtime_manifest import runtime_manifest
    from torchrl_vla.recipes.tokenizer_choice import fit_tokenizer, normalized_chunks
    from torchrl_vla.recipes.training_loop import TrainingLog, run_training
    from torchrl_vla.recipes.training_settings import TrainingSettings
    from torchrl_vla.recipes.training_state import TrainingState
    from torchrl_vla.recipes.vlm_factory import make_vlm_policy
    from torchrl_vla.recipes.vlm_settings import VLMSettings

_HERE = "torchrl_vla.recipes"
_MODULES = {
    "torchrl_vla.envs.known_environments": (
        "ENVIRONMENTS",
        "EnvironmentName",
        "ExpertEnvironmentName",
    ),
    "torchrl_vla.errors": ("ActionProviderError", "ResumeError", "SettingsError"),
    f"{_HERE}.behavior_cloning": ("make_training_transform", "train_behavior_cloning"),
    f"{_HERE}.checkpoints": (
        "load_checkpoint",
        "load_executor",
        "prepare_environment",
        "save_checkpoint",
    ),
    f"{_HERE}.demo.demo": ("run_demo",),
    f"{_HERE}.demo.demo_settings": ("DEMO_SETTINGS", "DemoSettings"),
    f"{_HERE}.demo.report": ("write_report",),
    f"{_HERE}.dataset_opening": ("open_dataset",),
    f"{_HERE}.dataset_options": ("DatasetOptions",),
    f"{_HERE}.encoded_demonstrations": ("EncodedDemonstrations", "encode_images"),
    f"{_HERE}.environment_options": ("EnvironmentOptions",),
    f"{_HERE}.executor_options": ("ExecutorOptions",),
    f"{_HERE}.environment_registry": ("make_environment",),
    f"{_HERE}.finetuning.algorithms": (
        "ALGORITHMS",
        "GRPO",
        "PPO",
        "RLOO",
        "Algorithm",
    ),
    f"{_HERE}.finetuning.finetune": ("FinetuneResult", "finetune"),
    f"{_HERE}.finetuning.finetune_settings": ("FinetuneSettings",),
    f"{_HERE}.finetuning.off_policy_algorithms": (
        *("OFF_POLICY", "QC", "RLPD", "NoiseSpace", "OffPolicy", "Residual"),
    ),
    f"{_HERE}.finetuning.rollouts": (
        "Reward",
        "Rollouts",
        "WorkerRollouts",
        "make_decision_env",
    ),
    f"{_HERE}.finetuning.run_log": ("RunLog",),
    f"{_HERE}.policy_factory": (
        "Head",
        "make_cloning_loss",
        "make_policy",
        "make_space",
        "to_stochastic",
    ),
    f"{_HERE}.lerobot_training": ("fit_lerobot_policy", "train_lerobot"),
    f"{_HERE}.provider.action_provider": ("ActionProvider",),
    f"{_HERE}.provider.action_request": ("ActionRequest",),
    f"{_HERE}.provider.action_result": (
        "ActionResult",
        "RawActionSummary",
        "summarize_actions",
    ),
    f"{_HERE}.provider.provider_events": ("ProviderEvent",),
    f"{_HERE}.provider.runtime_manifest": ("runtime_manifest",),
    f"{_HERE}.tokenizer_choice": ("fit_tokenizer", "normalized_chunks"),
    f"{_HERE}.training_loop": ("TrainingLog", "run_training"),
    f"{_HERE}.training_settings": ("TrainingSettings",),
    f"{_HERE}.training_state": ("TrainingState",),
    f"{_HERE}.vlm_factory": ("make_vlm_policy",),
    f"{_HERE}.vlm_settings": ("VLMSettings",),
}

__all__ = [
    "ALGORITHMS",
    "DEMO_SETTINGS",
    "ENVIRONMENTS",
    "GRPO",
    "OFF_POLICY",
    "PPO",
    "QC",
    "RLOO",
    "RLPD",
    "ActionProvider",
    "ActionProviderError",
    "ActionRequest",
    "ActionResult",
    "Algorithm",
    "DatasetOptions",
    "DemoSettings",
    "EncodedDemonstrations",
    "EnvironmentName",
    "EnvironmentOptions",
    "ExecutorOptions",
    "ExpertEnvironmentName",
    "FinetuneResult",
    "FinetuneSettings",
    "Head",
    "NoiseSpace",
    "OffPolicy",
    "ProviderEvent",
    "RawActionSummary",
    "Residual",
    "ResumeError",
    "Reward",
    "Rollouts",
    "RunLog",
    "SettingsError",
    "TrainingLog",
    "TrainingSettings",
    "TrainingState",
    "VLMSettings",
    "WorkerRollouts",
    "encode_images",
    "finetune",
    "fit_lerobot_policy",
    "fit_tokenizer",
    "load_checkpoint",
    "load_executor",
    "make_cloning_loss",
    "make_decision_env",
    "make_environment",
    "make_policy",
    "make_space",
    "make_training_transform",
    "make_vlm_policy",
    "normalized_chunks",
    "open_dataset",
    "prepare_environment",
    "run_demo",
    "run_training",
    "runtime_manifest",
    "save_checkpoint",
    "summarize_actions",
    "to_stochastic",
    "train_behavior_cloning",
    "train_lerobot",
    "write_report",
]

__getattr__ = lazy_names(__name__, _MODULES)
