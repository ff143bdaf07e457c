"""ALOHA environment: two simulated arms at a table."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from torchrl_vla.envs.gymnasium import GymnasiumEnv
from torchrl_vla.envs.lazy_rendering import RenderSpec
from torchrl_vla.envs.mujoco_renderer import RenderingError
from torchrl_vla.envs.simulator_interface import SimulatorInterface, SimulatorOptions
from torchrl_vla.envs.simulator_keys import SimulatorKeys
from torchrl_vla.schema import (
    GripperConvention,
    RobotDatasetMetadata,
    import_extra,
)

AlohaTask = Literal["insertion", "transfer_cube"]

#: Instructions of LeRobot's simulated ALOHA datasets, by task.
ALOHA_INSTRUCTIONS: dict[str, str] = {
    "insertion": "Insert the peg into the socket.",
    "transfer_cube": "Pick up the cube with the right arm and transfer it to the left "
    "arm.",
}

_RATE_HZ = 50.0
_CAMERA = "top"
_HEIGHT, _WIDTH = 480, 640
_JOINTS = {  # of one arm, with the range of its motor in rad; gripper: 0 closed, 1 open
    "waist": (-3.14158, 3.14158),
    "shoulder": (-1.85005, 1.25664),
    "elbow": (-1.76278, 1.6057),
    "forearm_roll": (-3.14158, 3.14158),
    "wrist_angle": (-1.8675, 2.23402),
    "wrist_rotate": (-3.14158, 3.14158),
    "gripper": (0.0, 1.0),
}
# The names in LeRobot's ALOHA datasets (in the package: left_arm_waist, ...).
_NAMES = tuple(f"{side}_{joint}" for side in ("left", "right") for joint in _JOINTS)


class AlohaEnv(GymnasiumEnv):
    """Bring a peg into a socket, or hand a cube over, with two arms.

    Observations are, number for number, those of LeRobot's own environment with
    ``obs_type="pixels_agent_pos"``. Success is a reward of 4; touching and lifting give
    lower rewards.

    Note:
        Actions are not clipped, as in LeRobot: the package declares bounds of -1..1,
        which its own demonstrations exceed (the motors stop at the bounds in
        ``env.metadata``). LeRobot's evaluation loop passes the task's short name as
        the instruction, not the sentence of its datasets.

    **Reads** ``action`` float32 ``[N, 14]``: joint positions in rad, six of the left
    arm, its gripper (0 closed, 1 open), then the right arm's.

    **Writes** ``("observation", "state")`` float32 ``[N, 14]``, positions likewise;
    with ``images`` ``("observation", "image", "top")`` uint8 ``[N, 3, 480, 640]``; and
    what :class:`GymnasiumEnv` writes.

    Args:
        task: ``"insertion"`` or ``"transfer_cube"``.

    Keyword Args:
        num_envs: ``N``, number of environments.
        images: True = write the image from above; False makes a step a hundred times
            as fast, but neither peg nor cube is in the state.
        quick_rendering: True = without anti-aliasing, shadows and reflections: six
            times as fast in software, and not LeRobot's pixels.
        max_steps: time limit.
        instruction: of every episode; None = the datasets' sentence.
        options: worker processes and rendering on demand.
        seed: seed of the episode seeds; see ``set_seed``.

    Raises:
        MissingExtraError: the package ``gym-aloha`` is not installed.
        ValueError: there is no such task; or rendering on demand without images.
        RenderingError: images cannot be rendered here; at a reset.

    Examples:
        >>> import torch
        >>> env = AlohaEnv("transfer_cube", images=False)
        >>> env.reset(episode_seeds=torch.tensor([3]))["observation", "state"].shape
        torch.Size([1, 14])
        >>> env.metadata.action_names[6], env.metadata.control_frequency_hz
        ('left_gripper', 50.0)

    Source: Zhao et al., "Learning Fine-Grained Bimanual Manipulation with Low-Cost
    Hardware" (2023), https://github.com/huggingface/gym-aloha.
    """

    def __init__(
        self,
        task: AlohaTask = "insertion",
        *,
        num_envs: int = 1,
        images: bool = True,
        quick_rendering: bool = False,
        max_steps: int = 400,
        instruction: str | None = None,
        options: SimulatorOptions = SimulatorOptions(),  # noqa: B008 (frozen)
        seed: int | None = None,
    ) -> None:
        if task not in get_args(AlohaTask):
            raise ValueError(
                f"AlohaEnv: expected a task of {get_args(AlohaTask)}, got {task!r}."
            )
        import_extra("gym_aloha", "aloha", "AlohaEnv")  # before any worker
        super().__init__(
            functools.partial(AlohaSimulator, task, quick_rendering),
            SimulatorInterface(
                SimulatorKeys(state=("agent_pos",)),
                "is_success",
                RenderSpec(
                    AlohaSimulator.render_images, {_CAMERA: (_HEIGHT, _WIDTH, 3)}
                )
                if images
                else None,
            ),
            instructions=instruction or ALOHA_INSTRUCTIONS[task],
            num_envs=num_envs,
            max_steps=max_steps,
            metadata=_make_metadata(task, images),
            options=options,
            seed=seed,
        )


class AlohaSimulator(gymnasium.Env):
    """Run the package's simulation, rendered apart from its steps.

    The package renders three cameras at every step and returns one; here the
    ``render`` of its physics is replaced by one that renders none. The action space is
    unbounded: ``GymnasiumEnv`` clips to it, LeRobot does not clip.

    Args:
        task: as of :class:`AlohaEnv`.
        quick_rendering: as of :class:`AlohaEnv`.
    """

    def __init__(self, task: str, quick_rendering: bool) -> None:
        with _graphics_without_a_display():
            package = import_extra("gym_aloha.env", "aloha", "AlohaEnv")
        self._env = package.AlohaEnv(task=task, obs_type="pixels_agent_pos")
        self._simulation = self._env._env
        physics = self._simulation.physics
        self._render = physics.render
        self._flags = {"shadow": False, "reflection": False} if quick_rendering else {}
        if quick_rendering:
            physics.model.vis.quality.offsamples = 0
        physics.render = _render_nothing  # of this simulation alone
        self.action_space = Box(-np.inf, np.inf, (len(_NAMES),), np.float32)
        self.observation_space = gymnasium.spaces.Dict(
            agent_pos=Box(-np.inf, np.inf, (len(_NAMES),))
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, object] | None = None
    ) -> tuple[dict[str, object], dict[str, object]]:
        """Start the episode of ``seed``."""
        return self._env.reset(seed=seed, options=options)

    def step(
        self, action: np.ndarray
    ) -> tuple[dict[str, object], float, bool, bool, dict[str, object]]:
        """Execute one action."""
        return self._env.step(action)

    def render_images(self) -> dict[str, np.ndarray]:
        """Return ``{"top": uint8 [480, 640, 3]}``, as the package renders it.

        Raises:
            RenderingError: no graphics library can render.
        """
        try:
            image = self._render(
                _HEIGHT, _WIDTH, _CAMERA, render_flag_overrides=self._flags
            )
        except Exception as error:  # each graphics backend raises its own
            raise RenderingError(
                "AlohaEnv: expected an OpenGL context to render its camera, got "
                f"{type(error).__name__}: {error}. Install libegl1, or install "
                "libosmesa6 and set MUJOCO_GL=osmesa before Python starts (MUJOCO_GL "
                f"is {os.environ.get('MUJOCO_GL')!r}), or go without images: "
                "images=False."
            ) from error
        return {_CAMERA: image}

    def close(self) -> None:
        """Free the simulation and its graphics."""
        self._simulation.close()


def _render_nothing(height: int, width: int, camera_id: str) -> np.ndarray:
    """Stand in for the ``render`` of a simulation's physics."""
    return np.empty((0, 0, 3), np.uint8)


@contextmanager
def _graphics_without_a_display() -> Iterator[None]:
    """Let the simulation choose EGL at its import, where it would need a display."""
    headless = not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    chooses = sys.platform == "linux" and headless and not os.environ.get("MUJOCO_GL")
    if not chooses:
        yield
        return
    os.environ["MUJOCO_GL"] = "egl"
    try:
        yield
    finally:
        del os.environ["MUJOCO_GL"]


def _make_metadata(task: str, images: bool) -> RobotDatasetMetadata:
    units = tuple("1" if name.endswith("gripper") else "rad" for name in _NAMES)
    low, high = zip(*(2 * list(_JOINTS.values())), strict=True)
    return RobotDatasetMetadata(
        f"aloha_{task}",
        embodiment_id="aloha",
        action_names=_NAMES,
        action_units=units,
        action_reference=("absolute",) * len(_NAMES),
        action_space=tuple("gripper" if unit == "1" else "joint" for unit in units),
        action_low=low,
        action_high=high,
        grippers=tuple(
            GripperConvention(dim=dim, open=1.0, closed=0.0)
            for dim, unit in enumerate(units)
            if unit == "1"
        ),
        state_names=_NAMES,
        state_units=units,
        control_frequency_hz=_RATE_HZ,
        cameras=(_CAMERA,) if images else (),
    )
