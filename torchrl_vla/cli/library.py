"""Names of the library that the commands use, imported when they are first used.

``--help`` reads the commands' options only, so it answers without PyTorch.
"""

from typing import TYPE_CHECKING

from torchrl_vla._internal.lazy_package import lazy_names

if TYPE_CHECKING:
    pass

_MODULES = {
    "torch": ("cat", "manual_seed"),
    "torchrl.envs": ("EnvBase",),
    "torchrl_vla.data": ("collect", "write_lerobot"),
    "torchrl_vla.data.demonstrations": ("check_folder_is_free",),
    "torchrl_vla.data.lerobot_writer.lerobot_writer": ("check_writer_extras",),
    "torchrl_vla.envs": ("RenderingError",),
    "torchrl_vla.evaluation": (
        "EvaluationResult",
        "Recorder",
        "compare",
        "evaluate",
        "hash_folder",
        "hash_weights",
        "make_ablation",
        "write_video",
    ),
    "torchrl_vla.policies.lerobot": ("KINDS",),
    "torchrl_vla.recipes.open_dataset": ("Demonstrations",),
    "torchrl_vla.recipes.devices": ("check_device", "on_device", "parse_device"),
    "torchrl_vla.recipes.own_policies": ("load_any_executor", "make_own_policy"),
    "torchrl_vla.recipes.training_state": ("check_training_folder", "finish_training"),
}

__getattr__ = lazy_names(__name__, _MODULES)
