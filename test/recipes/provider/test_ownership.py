"""The library drives no hardware: the host owns the robot and injects it."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[3] / "torchrl_vla"
DRIVERS = ("lerobot.robots", "lerobot.teleoperators", "lerobot.motors", "serial")


def test_only_the_runtime_knows_robots():
    found = []
    for path in PACKAGE.rglob("*.py"):
        if path.is_relative_to(PACKAGE / "runtime"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            elif isinstance(node, ast.Attribute) and node.attr == "send_action":
                found.append(f"{path.name}:{node.lineno} send_action")
            found += [
                f"{path.name}:{node.lineno} {module}"
                for module in modules
                if module.startswith(DRIVERS)
            ]
    assert found == []
