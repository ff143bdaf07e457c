from __future__ import annotations

import mujoco
import numpy as np
import pytest

from torchrl_vla.envs.mujoco_renderer import (
    MujocoRenderer,
    RenderingError,
    RenderStyle,
    _graphics_class,
)

# From the south, red is above green, and blue is to the east of it: to its right.
SCENE = """
<mujoco>
  <worldbody>
    <light pos="0 -5 0" dir="0 1 0"/>
    <geom type="box" size=".3 .3 .3" pos="0 0 1" rgba="1 0 0 1"/>
    <geom type="box" size=".3 .3 .3" pos="0 0 0" rgba="0 1 0 1"/>
    <geom type="box" size=".3 .3 .3" pos="1 0 0" rgba="0 0 1 1"/>
    <camera name="upright" pos="0 -5 0.5" xyaxes="1 0 0  0 0 1"/>
    <camera name="hanging" pos="0 -5 0.5" xyaxes="-1 0 0  0 0 -1"/>
  </worldbody>
</mujoco>
"""


@pytest.fixture
def scene():
    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


def draw(scene, cameras, size=32):
    renderer = MujocoRenderer(scene[0], cameras, size)
    images = renderer.render(scene[1])
    renderer.close()
    return images


def center(image, channel):
    others = np.delete(image.astype(int), channel, -1).max(-1)
    rows, columns = np.nonzero(image[..., channel] > others + 50)
    return rows.mean(), columns.mean()


@pytest.mark.parametrize("camera", ["upright", "hanging"])
@pytest.mark.usefixtures("opengl")
def test_up_is_up_and_right_is_right(scene, camera):
    image = draw(scene, [camera])[camera]
    assert image.shape == (32, 32, 3)
    assert image.dtype == np.uint8
    red, green, blue = (center(image, channel) for channel in range(3))
    assert red[0] < green[0] - 4
    assert blue[1] > green[1] + 4
    assert red[1] == pytest.approx(green[1], abs=1)
    assert blue[0] == pytest.approx(green[0], abs=1)


@pytest.mark.usefixtures("opengl")
def test_a_camera_hung_upside_down_shows_what_an_upright_one_shows(scene):
    images = draw(scene, ["upright", "hanging"])
    difference = np.abs(images["upright"].astype(int) - images["hanging"])
    assert difference.max() <= 1  # rounding of the rotated view matrix


@pytest.mark.usefixtures("opengl")
def test_renderers_of_two_sizes_do_not_disturb_each_other(scene):
    expected = {size: draw(scene, ["upright"], size)["upright"] for size in (16, 48)}
    renderers = {size: MujocoRenderer(scene[0], ["upright"], size) for size in (16, 48)}
    for _ in range(2):
        for size, renderer in renderers.items():
            image = renderer.render(scene[1])["upright"]
            assert np.array_equal(image, expected[size])
    for renderer in renderers.values():
        renderer.close()


@pytest.mark.usefixtures("opengl")
def test_drawing_after_close_starts_again(scene):
    first = draw(scene, ["upright"])["upright"]
    renderer = MujocoRenderer(scene[0], ["upright"], 32)
    renderer.close()
    assert np.array_equal(renderer.render(scene[1])["upright"], first)
    renderer.close()
    assert np.array_equal(renderer.render(scene[1])["upright"], first)
    renderer.close()
    renderer.close()


def test_unknown_cameras_are_refused_with_the_known_ones(scene):
    with pytest.raises(ValueError, match=r"\['upright', 'hanging'\], got \['wrist'\]"):
        MujocoRenderer(scene[0], ["upright", "wrist"], 32)


def test_where_nothing_can_draw_the_error_says_what_to_install(scene, monkeypatch):
    class NoDisplay:
        def __init__(self, width, height):
            raise RuntimeError("no display here")

    monkeypatch.setenv("MUJOCO_GL", "glfw")
    monkeypatch.setattr(mujoco, "GLContext", NoDisplay)
    with pytest.raises(
        RenderingError, match=r"no display here\. Install libegl1.*'glfw'"
    ):
        MujocoRenderer(scene[0], ["upright"], 32).render(scene[1])


def test_egl_is_taken_where_another_package_asks_for_it_late(monkeypatch):
    """Importing robosuite sets the variable after mujoco has chosen its library."""
    egl = pytest.importorskip("mujoco.egl")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    for value in ("egl", ""):
        monkeypatch.setenv("MUJOCO_GL", value)
        assert _graphics_class(RenderStyle()) is egl.GLContext
