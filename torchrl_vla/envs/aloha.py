"""ALOHA, two simulated arms at a table, in the canonical schema."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from torchrl_vla.envs.gymnasium import GymnasiumEnv
from torchrl_vla.envs.lazy_rendering import RenderSpec
from torchrl_vla.envs.mujoco_renderer import RenderingError
from torchrl_vla.envs.observation_keys import ObservationKeys
from torchrl_vla.schema import (
    GripperConvention,
    RobotDatasetMetadata,
    import_extra,
)

AlohaTask = Literal["insertion", "transfer_cube"]

#: What the episodes of LeRobot's simulated ALOHA datasets are told, by task.
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
# As LeRobot's ALOHA datasets name them (the package says left_arm_waist, ...).
_NAMES = tuple(f"{side}_{joint}" for side in ("left", "right") for joint in _JOINTS)


class AlohaEnv(GymnasiumEnv):
    """Bring a peg into a socket, or hand a cube over, with two arms.

    Observations are, number for number, those of LeRobot's own environment with
    ``obs_type="pixels_agent_pos"``. Success is a reward of 4, which the simulator gives
    in steps for touching and lifting. Two surprises: actions are executed as they are,
    as LeRobot does, though the package declares bounds of -1..1 that its own
    demonstrations leave (the motors stop at the bounds in ``env.metadata``); and
    LeRobot's evaluation loop tells policies the task's short name, not the sentence
    that its datasets have.

    **Reads** ``action`` float32 ``[N, 14]``: joint positions in rad, six of the left
    arm, its gripper (0 closed, 1 open), then the right arm's.

    **Writes** ``("observation", "state")`` float32 ``[N, 14]``, positions likewise;
    with ``images`` ``("observation", "image", "top")`` uint8 ``[N, 3, 480, 640]``; and
    what :class:`GymnasiumEnv` writes.

    Args:
        task: ``"insertion"`` or ``"transfer_cube"``.

    Keyword Args:
        num_envs: ``N``, the episodes that run side by side.
        images: True = write the image from above; False makes a step a hundred times
            as fast, but neither peg nor cube is in the state.
        quick_drawing: True = without anti-aliasing, shadows and reflections: six times
            as fast in software, and not LeRobot's pixels.
        max_steps: time limit.
        instruction: what every episode is told; None = the datasets' sentence.
        num_workers: processes that share the rows; 0 steps them in this one.
        render_on_demand: True = draw only where the policy looks, as
            :class:`GymnasiumEnv` says.
        seed: seed of the episode seeds; see ``set_seed``.

    Raises:
        MissingExtraError: the package ``gym-aloha`` is not installed.
        ValueError: there is no such task; or drawing on demand without images.
        RenderingError: images were asked for and cannot be drawn here; at a reset.

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
        quick_drawing: bool = False,
        max_steps: int = 400,
        instruction: str | None = None,
        num_workers: int = 0,
        render_on_demand: bool = False,
        seed: int | None = None,
    ) -> None:
        if task not in get_args(AlohaTask):
            raise ValueError(
                f"AlohaEnv: expected a task of {get_args(AlohaTask)}, got {task!r}."
            )
        import_extra("gym_aloha", "aloha", "AlohaEnv")  # before any worker
        super().__init__(
            functools.partial(AlohaSimulator, task, quick_drawing),
            observe=ObservationKeys(state=("agent_pos",)),
            instructions=instruction or ALOHA_INSTRUCTIONS[task],
            success_key="is_success",
            num_envs=num_envs,
            max_steps=max_steps,
            num_workers=num_workers,
            metadata=_make_metadata(task, images),
            drawing=RenderSpec(AlohaSimulator.draw, {_CAMERA: (_HEIGHT, _WIDTH, 3)})
            if images
            else None,
            render_on_demand=render_on_demand,
            seed=seed,
        )


class AlohaSimulator(gymnasium.Env):
    """Run the package's simulation, drawn apart from its steps.

    The package draws three cameras at every step and hands out one; here its physics
    has another ``render``, which draws none. The action space is unbounded:
    ``GymnasiumEnv`` clips to it, LeRobot does not clip.

    Args:
        task: see :class:`AlohaEnv`.
        quick_drawing: see :class:`AlohaEnv`.
    """

    def __init__(self, task: str, quick_drawing: bool) -> None:
        with _graphics_without_a_display():
            package = import_extra("gym_aloha.env", "aloha", "AlohaEnv")
        self._env = package.AlohaEnv(task=task, obs_type="pixels_agent_pos")
        self._simulation = self._env._env
        physics = self._simulation.physics
        self._draw = physics.render
        self._flags = {"shadow": False, "reflection": False} if quick_drawing else {}
        if quick_drawing:
            physics.model.vis.quality.offsamples = 0
        physics.render = _draw_nothing  # of this simulation alone
        self.action_space = Box(-np.inf, np.inf, (len(_NAMES),), np.float32)
        self.observation_space = gymnasium.spaces.Dict(
            agent_pos=Box(-np.inf, np.inf, (len(_NAMES),))
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin the episode of ``seed``."""
        return self._env.reset(seed=seed, options=options)

    def step(
        self, action: np.ndarray
    ) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Execute one action."""
        return self._env.step(action)

    def draw(self) -> dict[str, np.ndarray]:
        """Return ``{"top": uint8 [480, 640, 3]}``, as the package draws it.

        Raises:
            RenderingError: there is no graphics library that could.
        """
        try:
            image = self._draw(
                _HEIGHT, _WIDTH, _CAMERA, render_flag_overrides=self._flags
            )
        except Exception as error:  # each graphics backend raises its own
            raise RenderingError(
                "AlohaEnv: expected an OpenGL context to draw its camera, got "
                f"{type(error).__name__}: {error}. Install libegl1, or install "
                "libosmesa6 and set MUJOCO_GL=osmesa before Python starts (MUJOCO_GL "
                f"is {os.environ.get('MUJOCO_GL')!r}), or go without images: "
                "images=False."
            ) from error
        return {_CAMERA: image}

    def close(self) -> None:
        """Free the simulation and its graphics."""
        self._simulation.close()


def _draw_nothing(height: int, width: int, camera_id: str) -> np.ndarray:
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
    low, high = zip(*(2 * list(_JOINTS.values())))
    return RobotDatasetMetadata(
        f"aloha_{task}",
        embodiment_id="aloha",
        action_names=_NAMES,
        action_units=units,
        action_reference="absolute",
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
