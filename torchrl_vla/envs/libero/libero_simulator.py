"""Simulation of one LIBERO task, built once, and its state as numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from torchrl_vla.envs.libero.libero_protocol import LiberoProtocol
from torchrl_vla.envs.libero.libero_provider import (
    LiberoProvider,
    LiberoTask,
    ProviderError,
)
from torchrl_vla.envs.mujoco_renderer import MujocoRenderer, RenderStyle
from torchrl_vla.schema import import_extra

#: Cameras by the name in our images, with LIBERO's.
CAMERAS = {"agentview": "agentview", "wrist": "robot0_eye_in_hand"}

#: What the arm does while the objects settle: hold still, with the gripper open.
HOLD_STILL = np.array([0.0] * 6 + [-1.0])

#: Arrays of MuJoCo's data from which state and images are made.
_OBSERVED = (
    *("qpos", "xpos", "xquat", "xmat", "xipos", "ximat", "geom_xpos", "geom_xmat"),
    *("site_xpos", "site_xmat", "cam_xpos", "cam_xmat", "light_xpos", "light_xdir"),
    "subtree_com",
)

_COLLISION_GROUP = 0  # shapes that LIBERO does not show
#: robosuite's own noise on the arm's joints, with which the official states were made.
_JOINT_NOISE = {"magnitude": 0.02, "type": "gaussian"}
_NO_NOISE = {"magnitude": 0.0, "type": "gaussian"}


class LiberoSimulation:
    """Run episodes of one task, each a function of its initial state alone.

    LIBERO builds the simulation anew at each reset, which takes seconds. Here it is
    built once: a reset restores the same model, controller, gripper and fixtures, and
    then begins from an official initial state or samples one as LIBERO does.

    Args:
        provider: builds the simulation.
        task: of the episodes.
        protocol: of the episodes.
        cameras: to render, by our names or LIBERO's.
        image_size: side of the images in pixels.
    """

    def __init__(
        self,
        provider: LiberoProvider,
        task: LiberoTask,
        protocol: LiberoProtocol,
        cameras: tuple[str, ...] = (),
        image_size: int = 128,
    ) -> None:
        self.task = task
        self._protocol, self._provider = protocol, provider
        with _seeded(0):
            self.libero = provider.make_simulation(task)
        self.domain = self.libero.env
        self.domain.hard_reset = False
        self.domain.sim.reset = self._reset_data
        self.robot = self.domain.robots[0]
        self._mujoco = import_extra("mujoco", "libero", "LiberoEnv")
        self._substeps = int(self.domain.control_timestep / self.domain.model_timestep)
        self._seen = self._mujoco.MjData(self.model)
        self._observed = [
            (getattr(self._seen, name), getattr(self.data, name)) for name in _OBSERVED
        ]
        self._states = provider.initial_states(task)
        self._check_initial_states()
        self._renderer = None
        if cameras:
            self._renderer = MujocoRenderer(
                self.model,
                [CAMERAS.get(camera, camera) for camera in cameras],
                image_size,
                RenderStyle(
                    "LiberoEnv",
                    "libero",
                    quick=protocol.quick_rendering,
                    upright=False,
                    hidden_groups=(_COLLISION_GROUP,),
                ),
            )
        self._cameras = cameras
        # Read from the simulation itself, at a fraction of what its records cost.
        for observable in self.domain._observables.values():
            observable.set_enabled(False)

    @property
    def model(self) -> Any:
        """The ``mujoco.MjModel``."""
        return self.domain.sim.model._model

    @property
    def data(self) -> Any:
        """The ``mujoco.MjData``."""
        return self.domain.sim.data._data

    def begin_official(self, index: int) -> int:
        """Begin from an official initial state.

        Fixtures (cabinet, stove) are no part of these states: LIBERO samples their
        places at each reset. Here they are always those of its seed 0.

        Args:
            index: of the protocol's states, counted around.

        Returns:
            The state's number.
        """
        chosen = self._protocol.initial_states or range(len(self._states))
        number = chosen[index % len(chosen)]
        self._reset(0, _NO_NOISE)
        self.domain.sim.set_state_from_flattened(self._states[number])
        self._settle()
        return number

    def begin_sampled(self, seed: int) -> None:
        """Begin from an initial state that LIBERO's own sampler draws."""
        self._reset(seed, _JOINT_NOISE)
        self._settle()

    def step(self, action: np.ndarray) -> bool:
        """Execute an action ``[7]``; return whether the task is done.

        The numbers are those of LIBERO's own step, which computes the same positions
        and velocities three times; its constraints are solved as often here, since
        each solution begins from the last one. LIBERO observes one physics step (2 ms)
        before the end.
        """
        action = np.asarray(action, dtype=np.float64)
        mujoco, model, data = self._mujoco, self.model, self.data
        with self._without_forward():
            for index in range(self._substeps):
                mujoco.mj_step1(model, data)
                for _ in range(2):
                    mujoco.mj_forwardSkip(model, data, mujoco.mjtStage.mjSTAGE_VEL, 1)
                self.domain._pre_action(action, index == 0)
                mujoco.mj_step2(model, data)
                if index == self._substeps - 2:
                    self._observe()
        self.domain._post_process()
        return self.is_done()

    def is_done(self) -> bool:
        """Return whether the task is done, by LIBERO's predicate."""
        return bool(self.domain._check_success())

    def state(self) -> np.ndarray:
        """Return position, rotation and fingers of the hand, float64 ``[8]`` or 9."""
        robot, seen = self.robot, self._seen
        quaternion = fixed_sign(seen.body(robot.robot_model.eef_name).xquat)
        if self._protocol.rotation == "axis_angle":
            rotation = axis_angle(quaternion)
        else:
            rotation = quaternion
        fingers = seen.qpos[robot._ref_gripper_joint_pos_indexes]
        return np.concatenate([seen.site_xpos[robot.eef_site_id], rotation, fingers])

    def hand_position(self) -> np.ndarray:
        """Return where the fingers close, float64 ``[3]``, in m."""
        return self._seen.site_xpos[self.robot.eef_site_id].copy()

    def hand_rotation(self) -> np.ndarray:
        """Return the rotation matrix of the hand, ``[3, 3]``."""
        return self._seen.body(self.robot.robot_model.eef_name).xmat.reshape(3, 3)

    def place_of(self, name: str) -> np.ndarray:
        """Return the position of an object or site, by LIBERO's name."""
        body = self.domain.obj_body_id.get(name)
        place = self._seen.site(name).xpos if body is None else self._seen.xpos[body]
        return place.copy()

    def render(self) -> dict[str, np.ndarray]:
        """Return a uint8 image ``[h, w, 3]`` for each camera."""
        if self._renderer is None:
            return {}
        images = self._renderer.render(self._seen).values()
        turned = {
            "upright": np.s_[:, :],
            "mirrored": np.s_[:, ::-1],
            "upside_down": np.s_[::-1, :],
        }[self._protocol.image_orientation]
        return dict(zip(self._cameras, (x[turned] for x in images), strict=True))

    def close(self) -> None:
        """Free the graphics."""
        if self._renderer is not None:
            self._renderer.close()

    @contextmanager
    def _without_forward(self) -> Iterator[None]:
        """Let the controller read what ``mj_step1`` has computed."""
        self.domain.sim.forward = _do_nothing
        try:
            yield
        finally:
            del self.domain.sim.forward

    def _reset(self, seed: int, joint_noise: dict[str, object]) -> None:
        gripper = self.robot.gripper  # the one thing that its reset leaves as it is
        gripper.current_action = np.zeros_like(gripper.current_action)
        self.robot.initialization_noise = joint_noise
        with _seeded(seed):
            self.libero.reset()  # draws again until the objects have room

    def _observe(self) -> None:
        for seen, now in self._observed:
            seen[:] = now

    def _reset_data(self) -> None:
        """Leave MuJoCo's data as a new simulation with a renderer has them.

        They are computed twice there, and a solution begins from the last one.
        """
        self._mujoco.mj_resetData(self.model, self.data)
        for _ in range(2):
            self._mujoco.mj_forward(self.model, self.data)

    def _settle(self) -> None:
        self.domain.sim.forward()
        self.domain._post_process()
        self._observe()
        for _ in range(self._protocol.settle_steps):
            self.step(HOLD_STILL)

    def _check_initial_states(self) -> None:
        missing = [
            number
            for number in self._protocol.initial_states or ()
            if not 0 <= number < len(self._states)
        ]
        if missing:
            raise ProviderError(
                f"LiberoEnv: expected initial_states in 0 .. {len(self._states) - 1} "
                f"of {self.task.name!r}, got {missing}. Choose of these, or leave "
                "LiberoProtocol's initial_states out for all of them."
            )


def _do_nothing() -> None:
    """Stand in for a simulation's ``forward``."""


def fixed_sign(wxyz: np.ndarray) -> np.ndarray:
    """Return a quaternion as x, y, z, w with x >= 0.

    Both signs are the same rotation. The hand points down, where x is near 1.

    Examples:
        >>> fixed_sign(np.array([0.0, -1.0, 0.0, 0.5])).tolist()
        [1.0, -0.0, -0.5, -0.0]
    """
    xyzw = np.roll(wxyz, -1)
    return -xyzw if xyzw[0] < 0 else xyzw


def axis_angle(xyzw: np.ndarray) -> np.ndarray:
    """Return a unit quaternion's axis times its angle, in rad.

    Examples:
        >>> axis_angle(np.array([1.0, 0.0, 0.0, 0.0])).round(4).tolist()
        [3.1416, 0.0, 0.0]
    """
    real = float(np.clip(xyzw[3], -1.0, 1.0))
    sine = np.sqrt(1.0 - real * real)
    if sine < 1e-9:
        return np.zeros(3)
    return xyzw[:3] * (2.0 * np.arccos(real) / sine)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator, from which LIBERO draws, and put it back."""
    before = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(before)
