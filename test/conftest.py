from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch

SCENE = '<mujoco><worldbody><camera name="eye"/></worldbody></mujoco>'


# A plugin of LeRobot's, which its tests install.
collect_ignore = (
    [] if importlib.util.find_spec("lerobot") else ["support/lerobot_policy_linear"]
)

# Nothing in the suite may wait for the Hub.
os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_addoption(parser) -> None:
    parser.addoption(
        "--device",
        default="cpu",
        help="of the tests: cpu, cuda, or rehearsal (one without hardware)",
    )


def pytest_configure(config) -> None:
    if (name := config.getoption("--device")) != "cpu":
        import device_lane

        device_lane.begin(name)


@pytest.fixture
def device(request) -> torch.device:
    """The device of the option ``--device``."""
    import torch

    return torch.device(request.config.getoption("--device"))


def _lerobot_lane() -> str:
    if importlib.util.find_spec("lerobot") is None:
        return "lerobot: not installed, its tests run in lanes of their own"
    version = importlib.metadata.version("lerobot")
    torch = importlib.metadata.version("torch")
    return f"lerobot: {version} on Python {platform.python_version()}, torch {torch}"


def pytest_report_header() -> str:
    return _lerobot_lane()


def pytest_collection_modifyitems(config, items) -> None:
    """Leave out what is not installed, and on another device what runs on the CPU."""
    missing = [
        package
        for package in ("lerobot", "libero")
        if importlib.util.find_spec(package) is None
    ]
    if config.getoption("--device") != "cpu":
        import device_lane

        device_lane.mark_cpu_only(items)
        missing.append("cpu_only")
    left_out = [item for item in items if any(map(item.get_closest_marker, missing))]
    if config.getoption("--device") == "cpu":  # they compare a device with the CPU
        left_out += [i for i in items if i.nodeid.startswith("test/device/")]
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="session")
def opengl():
    """Skip where nothing can draw; fail there if ``TORCHRL_VLA_REQUIRE_GL`` is set."""
    import mujoco

    from torchrl_vla.envs.mujoco_renderer import MujocoRenderer, RenderingError

    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer = MujocoRenderer(model, ["eye"], 8)
    try:
        renderer.render(data)
    except RenderingError as error:
        if os.environ.get("TORCHRL_VLA_REQUIRE_GL"):
            raise
        pytest.skip(str(error))
    finally:
        renderer.close()
