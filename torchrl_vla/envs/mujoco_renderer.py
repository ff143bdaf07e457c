"""Off-screen renderer of a MuJoCo model's cameras, with or without a display."""

from __future__ import annotations

import atexit
import os
import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchrl_vla.schema import VLAError, import_extra


class RenderingError(VLAError, RuntimeError):
    """There is no OpenGL context to render images in."""


@dataclass(frozen=True)
class RenderStyle:
    """Choose how a :class:`MujocoRenderer` renders.

    Args:
        caller: environment that opens error messages.
        extra: the extra that installs it.
        quick: True = without shadows, reflections and anti-aliasing: in software they
            make an image of 64 pixels ten times as slow.
        upright: True = turn the images of cameras that hang upside down.
        hidden_groups: groups of geometry that are not shown.
    """

    caller: str = "MetaWorldEnv"
    extra: str = "metaworld"
    quick: bool = True
    upright: bool = True
    hidden_groups: tuple[int, ...] = ()


class MujocoRenderer:
    """Render the cameras of a MuJoCo model.

    Args:
        model: the ``mujoco.MjModel``.
        cameras: names of its cameras.
        image_size: side of the images in pixels.
        style: of the images.

    Raises:
        ValueError: the model has no such camera; lists the ones that it has.
    """

    def __init__(
        self,
        model: Any,
        cameras: Sequence[str],
        image_size: int,
        style: RenderStyle = RenderStyle(),
    ) -> None:
        known = [model.camera(index).name for index in range(model.ncam)]
        unknown = sorted(set(cameras) - set(known))
        if unknown:
            raise ValueError(
                f"{style.caller}: expected cameras of {known}, got {unknown}."
            )
        self._model, self._size, self._style = model, image_size, style
        self._cameras = {camera: known.index(camera) for camera in cameras}
        self._framebuffer: Framebuffer | None = None

    def render(self, data: Any) -> dict[str, np.ndarray]:
        """Return a uint8 image ``[h, w, 3]`` for each camera."""
        if self._framebuffer is None:
            self._framebuffer = self._make_framebuffer()
            # Contexts that outlive the graphics library print errors at exit.
            atexit.register(_close_if_alive, weakref.ref(self))
        images = {}
        for camera, index in self._cameras.items():
            image = self._framebuffer.render(data, index)
            # Column 1 of a camera's rotation is its up axis.
            upside_down = data.cam_xmat[index].reshape(3, 3)[2, 1] < -1e-6
            turn = self._style.upright and upside_down
            images[camera] = image[::-1, ::-1] if turn else image
        return images

    def close(self) -> None:
        """Free the graphics context; rendering again makes a new one."""
        if self._framebuffer is not None:
            self._framebuffer.close()
            self._framebuffer = None

    def _make_framebuffer(self) -> Framebuffer:
        try:
            return Framebuffer(self._model, self._size, self._style)
        except Exception as error:  # each graphics backend raises its own
            raise RenderingError(
                f"{self._style.caller}: expected an OpenGL context to render cameras "
                f"{list(self._cameras)}, got {type(error).__name__}: {error}. Install "
                "libegl1, or install libosmesa6 and set MUJOCO_GL=osmesa before Python "
                f"starts (MUJOCO_GL is {os.environ.get('MUJOCO_GL')!r}), or go without "
                "images: cameras=()."
            ) from error


class Framebuffer:
    """Hold the graphics context of one model and render into it.

    Replaces ``mujoco.Renderer``, which uses the graphics library that was chosen when
    TorchRL imported ``mujoco``: without a display and without ``MUJOCO_GL`` in the
    environment that library cannot render.

    Args:
        model: the ``mujoco.MjModel``.
        size: side of the images in pixels.
        style: of the images.
    """

    def __init__(self, model: Any, size: int, style: RenderStyle) -> None:
        self._mujoco = mujoco = import_extra("mujoco", style.extra, style.caller)
        if style.quick:
            model.vis.quality.offsamples = 0
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        self._model, self._size = model, size
        self._graphics = _graphics_class(style)(size, size)
        self._graphics.make_current()
        self._scene = mujoco.MjvScene(model, maxgeom=10_000)
        if style.quick:
            for flag in (
                mujoco.mjtRndFlag.mjRND_SHADOW,
                mujoco.mjtRndFlag.mjRND_REFLECTION,
            ):
                self._scene.flags[flag] = 0
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._option, self._camera = mujoco.MjvOption(), mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._option.geomgroup[list(style.hidden_groups)] = 0

    def render(self, data: Any, camera_index: int) -> np.ndarray:
        """Return the image of one camera, not turned upright, uint8 ``[h, w, 3]``."""
        mujoco = self._mujoco
        self._graphics.make_current()
        self._camera.fixedcamid = camera_index
        mujoco.mjv_updateScene(
            self._model,
            data,
            self._option,
            None,
            self._camera,
            mujoco.mjtCatBit.mjCAT_ALL,
            self._scene,
        )
        window = mujoco.MjrRect(0, 0, self._size, self._size)
        image = np.empty((self._size, self._size, 3), np.uint8)
        mujoco.mjr_render(window, self._scene, self._context)
        mujoco.mjr_readPixels(image, None, window, self._context)
        return image[::-1]  # OpenGL counts rows from the bottom

    def close(self) -> None:
        """Free the graphics context."""
        self._graphics.make_current()
        self._context.free()
        self._graphics.free()


def _graphics_class(style: RenderStyle) -> Any:
    headless = not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    # robosuite sets "egl" when it is imported, which may be after mujoco has chosen.
    chosen = os.environ.get("MUJOCO_GL") or ("egl" if headless else "")
    if sys.platform == "linux" and chosen == "egl":
        return import_extra("mujoco.egl", style.extra, style.caller).GLContext
    return import_extra("mujoco", style.extra, style.caller).GLContext


def _close_if_alive(renderer: weakref.ref[MujocoRenderer]) -> None:
    alive = renderer()
    if alive is not None:
        alive.close()
