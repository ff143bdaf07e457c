"""Arguments of TorchRL's RobotDatasetMetadata and what stands for them."""

from __future__ import annotations

from torchrl_vla._internal.torchrl_spellings import torchrl_spellings
from torchrl_vla.schema.keys import ACTION_KEY, INSTRUCTION_KEY, STATE_KEY

_STATISTICS = "action_statistics=FeatureStatistics.from_samples(actions)"
_KEYS = "the keys of the classes that read them: metadata hold none"
_SOURCE = "a file beside the data: metadata say what the numbers mean"


#: Takes TorchRL's arguments of the class of the same name.
takes_torchrls_arguments = torchrl_spellings(
    same={
        "batch_size": ([], ()),
        "gripper_mode": ("unknown",),
        "camera_keys": ((),),
        "state_key": (STATE_KEY, None),
        "instruction_key": (INSTRUCTION_KEY, None),
        "action_key": (ACTION_KEY,),
    }
    | dict.fromkeys(
        ("device", "names", "action_mean", "action_std", "license", "source_url"),
        (None,),
    ),
    instead={
        "batch_size": "none: one record describes all data",
        "device": "none: it holds no tensors",
        "names": "action_names= or state_names=",
        "action_mean": _STATISTICS,
        "action_std": _STATISTICS,
        "gripper_mode": "grippers=(GripperConvention(dim, open=..., closed=...),)",
        "camera_keys": "cameras=, the names of the entries below the image",
        "state_key": _KEYS,
        "instruction_key": _KEYS,
        "action_key": _KEYS,
        "license": _SOURCE,
        "source_url": _SOURCE,
    },
)
