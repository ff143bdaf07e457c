"""LIBERO environment: language-conditioned tasks of one arm."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from torchrl_vla.envs.gymnasium import GymnasiumEnv
from torchrl_vla.envs.lazy_rendering import RenderSpec
from torchrl_vla.envs.libero.libero_expert import LiberoExpert
from torchrl_vla.envs.libero.libero_grasps import find_grasp
from torchrl_vla.envs.libero.libero_protocol import LiberoProtocol
from torchrl_vla.envs.libero.libero_provider import LiberoProvider, find_tasks
from torchrl_vla.envs.libero.libero_suites import MAX_STEPS, base_suite, find_suite
from torchrl_vla.envs.libero.libero_tasks import LiberoPool, LiberoTasks
from torchrl_vla.envs.simulator_interface import SimulatorInterface, SimulatorOptions
from torchrl_vla.envs.simulators import PRIVILEGED
from torchrl_vla.schema import (
    GripperConvention,
    RobotDatasetMetadata,
    RotationConvention,
)

_RATE_HZ = 20.0


class LiberoEnv(GymnasiumEnv):
    """Run a batch of LIBERO tasks, distinguished by their instructions.

    One batch mixes tasks: episode ``i`` of a run has task ``i % len(tasks)``. Episode
    ``i`` of an evaluation begins from the task's official initial state
    ``i // len(tasks)``; more episodes than ``official_episodes`` are refused by
    ``evaluate`` (a reset alone counts around). Demonstrations and training begin from
    states that LIBERO's own sampler draws, so no policy is cloned from or trained on
    one that it is evaluated on. Success, which ends an episode, is LIBERO's predicate.

    Note:
        A simulation takes 400 MB and two seconds to build. Each process builds one
        per task, and one more for each further environment that runs a task at the
        same time. LIBERO loads the library EGL also where nothing is rendered.

    **Reads** ``action`` float32 ``[N, 7]`` in [-1, 1]: motion of the hand along x, y, z
    (1 = 5 cm) and about them (axis-angle, 1 = 0.5 rad), gripper -1 open, 1 closed.

    **Writes** ``("observation", "state")`` float32 ``[N, 8]``: position of the hand in
    m, its rotation (axis-angle in rad, or a quaternion: ``[N, 9]``), positions of the
    fingers in m; ``("observation", "image", camera)`` uint8
    ``[N, 3, image_size, image_size]``; and what :class:`GymnasiumEnv` writes.

    Args:
        suite: ``"spatial"``, ``"object"``, ``"goal"``, ``"10"`` or ``"90"``; or a
            variant of LIBERO-PRO, such as ``"object_swap"``: ``lan``, ``object``,
            ``swap``, ``task``. With or without ``libero_`` in front.
        tasks: numbers, names or instructions of its tasks; none = all of them.

    Keyword Args:
        num_envs: ``N``, number of environments.
        cameras: ``"agentview"``, ``"wrist"`` or others of LIBERO's; ``()`` = no images.
        image_size: side of the images in pixels.
        protocol: what published evaluations differ in: time limit, settle steps,
            layout of the state, orientation of the images.
        options: worker processes and rendering on demand.
        seed: seed of the episode seeds; see ``set_seed``.

    Raises:
        MissingExtraError: no package that provides LIBERO is installed.
        ProviderError: it lacks its assets, the suite or an initial state.
        ValueError: unknown suite or task; lists the known ones. Or rendering on demand
            without cameras.
        RenderingError: images cannot be rendered here; at a reset.

    Examples:
        >>> env = LiberoEnv("object", [6], cameras=())
        >>> env.instructions.texts, env.max_steps, env.metadata.control_frequency_hz
        (('pick up the butter and place it in the basket',), 280, 20.0)

    Source: Liu et al., "LIBERO: Benchmarking Knowledge Transfer for Lifelong Robot
    Learning" (2023), https://libero-project.github.io; Zhou et al., "LIBERO-PRO"
    (2025), arXiv 2510.03827.
    """

    #: True = consecutive episode seeds have the tasks in turn.
    tasks_take_turns = True

    def __init__(
        self,
        suite: str = "object",
        tasks: int | str | Sequence[int | str] = (),
        *,
        num_envs: int = 1,
        cameras: Sequence[str] = ("agentview", "wrist"),
        image_size: int = 128,
        protocol: LiberoProtocol = LiberoProtocol(),  # noqa: B008 (frozen)
        options: SimulatorOptions = SimulatorOptions(),  # noqa: B008 (frozen)
        seed: int | None = None,
    ) -> None:
        self.suite = find_suite(suite)
        self.provider = LiberoProvider.installed()
        wanted = (tasks,) if isinstance(tasks, int | str) else tuple(tasks)
        self.tasks = find_tasks(self.provider.tasks(self.suite), wanted)
        self.protocol = protocol
        cameras = (cameras,) if isinstance(cameras, str) else tuple(cameras)
        pool = LiberoPool(self.provider, protocol, cameras, image_size)
        rendering = RenderSpec(
            LiberoTasks.render_images,
            dict.fromkeys(cameras, (image_size, image_size, 3)),
        )
        super().__init__(
            functools.partial(LiberoTasks, self.tasks, pool),
            SimulatorInterface(_identity, "success", rendering if cameras else None),
            instructions=[task.instruction for task in self.tasks],
            num_envs=num_envs,
            max_steps=protocol.max_steps or MAX_STEPS[base_suite(self.suite)],
            metadata=_make_metadata(self.suite, cameras, protocol),
            options=options,
            seed=seed,
        )

    def make_expert(self, *, noise: float = 0.0, seed: int = 0) -> LiberoExpert:
        """Make the scripted expert; no package has one.

        Raises:
            ValueError: the noise is negative, or a task has no script.
        """
        for task in self.tasks:
            find_grasp(task)
        return LiberoExpert(self, noise=noise, seed=seed)

    def plan(self) -> Tensor:
        """Return what the scripts do next, and their part of the noise, ``[N, 8]``."""
        plans = self._simulators.privileged(self._indices(None))[PRIVILEGED]
        return torch.from_numpy(plans).to(torch.float32)

    @property
    def official_episodes(self) -> int:
        """How many episodes of an evaluation begin from different initial states."""
        chosen = self.protocol.initial_states
        counts = (
            len(self.provider.initial_states(task) if chosen is None else set(chosen))
            for task in self.tasks
        )
        return len(self.tasks) * min(counts)

    @property
    def provenance(self) -> dict[str, object]:
        """What a result on LIBERO depends on, beyond the metadata."""
        return {
            "suite": self.suite,
            "tasks": [task.name for task in self.tasks],
            "provider": str(self.provider),
            "settle_steps": self.protocol.settle_steps,
            "quick_rendering": self.protocol.quick_rendering,
            "initial_states": self.protocol.initial_states or "all",
        }


def _identity(observation: dict[str, object]) -> dict[str, object]:
    return observation


def _make_metadata(
    suite: str, cameras: tuple[str, ...], protocol: LiberoProtocol
) -> RobotDatasetMetadata:
    rotation = protocol.rotation
    letters, unit = ("xyz", "rad") if rotation == "axis_angle" else ("xyzw", "1")
    return RobotDatasetMetadata(
        suite,
        embodiment_id="panda",
        action_names=("x", "y", "z", "roll", "pitch", "yaw", "gripper"),
        action_units=("5 cm",) * 3 + ("0.5 rad",) * 3 + ("1",),
        action_reference=("delta",) * 6 + ("absolute",),
        action_space=("end_effector",) * 6 + ("gripper",),
        rotations=(RotationConvention((3, 4, 5), "axis_angle", frame="world"),),
        grippers=(GripperConvention(dim=6, open=-1.0, closed=1.0),),
        action_low=(-1.0,) * 7,
        action_high=(1.0,) * 7,
        state_names=(
            *(f"hand_{axis}" for axis in "xyz"),
            *(f"hand_{rotation}_{letter}" for letter in letters),
            "finger_1",
            "finger_2",
        ),
        state_units=("m",) * 3 + (unit,) * len(letters) + ("m",) * 2,
        control_frequency_hz=_RATE_HZ,
        cameras=cameras,
        image_orientation=protocol.image_orientation if cameras else None,
    )
