from __future__ import annotations

import os

import mujoco
import pytest

from torchrl_vla.envs.mujoco_painter import Painter, RenderingError

SCENE = '<mujoco><worldbody><camera name="eye"/></worldbody></mujoco>'


@pytest.fixture(scope="session")
def opengl():
    """Skip where nothing can draw; fail there if ``TORCHRL_VLA_REQUIRE_GL`` is set."""
    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    painter = Painter(model, ["eye"], 8)
    try:
        painter.draw(data)
    except RenderingError as error:
        if os.environ.get("TORCHRL_VLA_REQUIRE_GL"):
            raise
        pytest.skip(str(error))
    finally:
        painter.close()
