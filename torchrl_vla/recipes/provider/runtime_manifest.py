"""Manifest of what a host needs to run a LeRobot policy here."""

from __future__ import annotations

from typing import Any

from torchrl_vla.policies import LEROBOT_POLICY_TYPES
from torchrl_vla.policies.lerobot import KINDS


def runtime_manifest() -> dict[str, Any]:
    """Return what the host provides, and how a run is tried, as JSON-native values.

    ``torchrl-vla smoke --manifest manifest.json`` writes it.

    Examples:
        >>> runtime_manifest()["environment"]["policy"]["aliases"]
        ['LEROBOT_POLICY_PATH', 'LEROBOT_POLICY']
    """
    return {
        "schema": 1,
        "provider": "lerobot",
        "capability": "policy",
        "environment": {
            "policy": {
                "aliases": ["LEROBOT_POLICY_PATH", "LEROBOT_POLICY"],
                "required": True,
            },
            "policy_type": {
                "aliases": ["LEROBOT_POLICY_TYPE"],
                "required": False,
                "values": sorted(KINDS),
            },
            "device": {
                "aliases": ["LEROBOT_DEVICE"],
                "required": False,
                "default": "cpu",
            },
            "cache_folder": {"aliases": ["LEROBOT_CACHE_DIR"], "required": False},
            "embodiment_tag": {
                "aliases": ["LEROBOT_EMBODIMENT_TAG"],
                "required": False,
            },
        },
        "versions": {"lerobot": sorted(LEROBOT_POLICY_TYPES)},
        "host_owned": ["checkpoint", "observation", "translator", "safety", "robot"],
        "smoke_command": (
            "torchrl-vla smoke --policy $LEROBOT_POLICY_PATH --observation "
            "my_robot:make_observation --translator my_robot:make_translator "
            "--device cpu"
        ),
        "expected_signal": {
            "exit_code": 0,
            "output": "actions [H, A] in ... s",
            "json": ["loader_mode", "raw_action_summary", "translator_contract"],
        },
    }
