"""Names of the library that the commands use, imported when they are first used.

``--help`` reads the commands' options only, so it answers without PyTorch.
"""

from typing import TYPE_CHECKING

from torchrl_vla._internal.lazy_package import lazy_names

if TYPE_CHECKING:
    from torch import cat, manual_seed

    from torchrl_vla.data import (
        DemonstrationDataset,
        clamp_labels,
        collect,
        convert_demonstrations,
        reword_demonstrations,
        write_lerobot,
    )
    from torchrl_vla.data.dataset_conversion import frame_conversion
    from torchrl_vla.data.demonstrations import check_folder_is_free
    from torchrl_vla.data.lerobot_writer.lerobot_writer import check_writer_extras
    from torchrl_vla.diagnosis import (
        Diagnosis,
        diagnose,
        inspect_path,
        write_inspection,
    )
    from torchrl_vla.distributed import Ranks, joined_ranks
    from torchrl_vla.envs import RenderingError
    from torchrl_vla.evaluation import (
        EvaluationResult,
        Recorder,
        Shard,
        compare,
        evaluate,
        make_ablation,
        merge_shards,
        regression_gate,
        video_grid,
        write_video,
    )
    from torchrl_vla.policies import make_image_encoder, make_text_encoder
    from torchrl_vla.policies.lerobot import KINDS
    from torchrl_vla.profiling import TrainingProfiler
    from torchrl_vla.profiling.hub_publication import HubPublisher, full_repo_id
    from torchrl_vla.profiling.orchestrator import (
        RunProvenance,
        is_installed,
        run_profiles,
    )
    from torchrl_vla.profiling.profile_cases import find_cases
    from torchrl_vla.profiling.profile_comparison import compare_profiles
    from torchrl_vla.profiling.profile_report import (
        read_rows,
        snapshot_table,
        write_profile_report,
    )
    from torchrl_vla.recipes.builtin_policies import is_builtin_policy, make_expert
    from torchrl_vla.recipes.dataset_opening import Demonstrations, metadata_in
    from torchrl_vla.recipes.devices import on_device, parse_device
    from torchrl_vla.recipes.own_policies import (
        describe_conversion,
        load_any_executor,
        make_own_policy,
        runs_on_device_of_environment,
    )
    from torchrl_vla.recipes.served_policies import (
        TOKEN_VARIABLE,
        example_observation,
        load_served_policy,
        policy_digest,
    )
    from torchrl_vla.recipes.training_state import (
        check_training_folder,
        finish_training,
    )
    from torchrl_vla.rollout import episode_seeds
    from torchrl_vla.schema import RobotDatasetMetadata, Wordings
    from torchrl_vla.serving import PolicyServer, ServerOptions

_MODULES = {
    "torch": (
        "cat",
        "manual_seed",
    ),
    "torchrl_vla.data": (
        "DemonstrationDataset",
        "convert_demonstrations",
        "clamp_labels",
        "collect",
        "reword_demonstrations",
        "write_lerobot",
    ),
    "torchrl_vla.data.dataset_conversion": ("frame_conversion",),
    "torchrl_vla.data.demonstrations": ("check_folder_is_free",),
    "torchrl_vla.data.lerobot_writer.lerobot_writer": ("check_writer_extras",),
    "torchrl_vla.diagnosis": (
        "Diagnosis",
        "diagnose",
        "inspect_path",
        "write_inspection",
    ),
    "torchrl_vla.distributed": ("Ranks", "joined_ranks"),
    "torchrl_vla.envs": ("RenderingError",),
    "torchrl_vla.evaluation": (
        "EvaluationResult",
        "Recorder",
        "compare",
        "evaluate",
        "Shard",
        "make_ablation",
        "merge_shards",
        "regression_gate",
        "video_grid",
        "write_video",
    ),
    "torchrl_vla.policies": ("make_image_encoder", "make_text_encoder"),
    "torchrl_vla.policies.lerobot": ("KINDS",),
    "torchrl_vla.profiling": ("TrainingProfiler",),
    "torchrl_vla.profiling.hub_publication": ("HubPublisher", "full_repo_id"),
    "torchrl_vla.profiling.orchestrator": (
        "RunProvenance",
        "is_installed",
        "run_profiles",
    ),
    "torchrl_vla.profiling.profile_cases": ("find_cases",),
    "torchrl_vla.profiling.profile_comparison": ("compare_profiles",),
    "torchrl_vla.profiling.profile_report": (
        "read_rows",
        "snapshot_table",
        "write_profile_report",
    ),
    "torchrl_vla.recipes.builtin_policies": ("is_builtin_policy", "make_expert"),
    "torchrl_vla.recipes.dataset_opening": ("Demonstrations", "metadata_in"),
    "torchrl_vla.recipes.devices": (
        "on_device",
        "parse_device",
    ),
    "torchrl_vla.recipes.own_policies": (
        "describe_conversion",
        "load_any_executor",
        "make_own_policy",
        "runs_on_device_of_environment",
    ),
    "torchrl_vla.recipes.training_state": (
        "check_training_folder",
        "finish_training",
    ),
    "torchrl_vla.schema": ("RobotDatasetMetadata", "Wordings"),
    "torchrl_vla.serving": ("PolicyServer", "ServerOptions"),
    "torchrl_vla.recipes.served_policies": (
        "TOKEN_VARIABLE",
        "example_observation",
        "load_served_policy",
        "policy_digest",
    ),
    "torchrl_vla.rollout": ("episode_seeds",),
}

__all__ = [
    "KINDS",
    "TOKEN_VARIABLE",
    "DemonstrationDataset",
    "Demonstrations",
    "Diagnosis",
    "EvaluationResult",
    "HubPublisher",
    "PolicyServer",
    "Ranks",
    "Recorder",
    "RenderingError",
    "RobotDatasetMetadata",
    "RunProvenance",
    "ServerOptions",
    "Shard",
    "TrainingProfiler",
    "Wordings",
    "cat",
    "check_folder_is_free",
    "check_training_folder",
    "check_writer_extras",
    "clamp_labels",
    "collect",
    "compare",
    "compare_profiles",
    "convert_demonstrations",
    "describe_conversion",
    "diagnose",
    "episode_seeds",
    "evaluate",
    "example_observation",
    "find_cases",
    "finish_training",
    "frame_conversion",
    "full_repo_id",
    "inspect_path",
    "is_builtin_policy",
    "is_installed",
    "joined_ranks",
    "load_any_executor",
    "load_served_policy",
    "make_ablation",
    "make_expert",
    "make_image_encoder",
    "make_own_policy",
    "make_text_encoder",
    "manual_seed",
    "merge_shards",
    "metadata_in",
    "on_device",
    "parse_device",
    "policy_digest",
    "read_rows",
    "regression_gate",
    "reword_demonstrations",
    "run_profiles",
    "runs_on_device_of_environment",
    "snapshot_table",
    "video_grid",
    "write_inspection",
    "write_lerobot",
    "write_profile_report",
    "write_video",
]

__getattr__ = lazy_names(__name__, _MODULES)
