"""MetaWorld environment: 50 manipulation tasks of one arm."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase

from torchrl_vla.envs.gymnasium import GymnasiumEnv
from torchrl_vla.envs.lazy_rendering import RenderSpec
from torchrl_vla.envs.metaworld_simulator import (
    STATE_DIM,
    SawyerTasks,
    SimulatorPool,
)
from torchrl_vla.envs.metaworld_tasks import INSTRUCTIONS, find_task
from torchrl_vla.envs.simulator_interface import SimulatorInterface, SimulatorOptions
from torchrl_vla.schema import (
    ACTION_KEY,
    EXPERT_ACTION_KEY,
    INSTRUCTION_KEY,
    STATE_KEY,
    GripperConvention,
    InstructionTable,
    RobotDatasetMetadata,
    SchemaError,
    import_extra,
    instruction_texts,
    is_text,
)

_RATE_HZ = 80.0  # five physics steps of 2.5 ms an action


class MetaWorldEnv(GymnasiumEnv):
    """Run a batch of MetaWorld tasks, distinguished by their instructions.

    One batch mixes tasks: an episode's task is ``tasks[seed % len(tasks)]``, so
    consecutive seeds take turns. The package samples goals and object positions from
    global state and ignores the seed of ``reset``; here task and initial state are a
    pure function of the episode's seed. The goal is
    visible: the state is the package's 39 numbers with the goal in the last three.

    **Reads** ``action`` float32 ``[N, 4]`` in [-1, 1]: hand displacement x, y, z in cm
    (from the previous command) and gripper effort, 1 = close.

    **Writes** ``("observation", "state")`` float32 ``[N, 39]``; with ``cameras``
    ``("observation", "image")`` uint8 ``[N, 3, image_size, image_size]``, or one entry
    per camera below it; and what :class:`GymnasiumEnv` writes.

    Args:
        tasks: one name or several, of the 50 in
            :data:`~torchrl_vla.envs.metaworld_tasks.INSTRUCTIONS`, with or without
            the ending ``-v3``.

    Keyword Args:
        num_envs: ``N``, number of environments.
        cameras: a camera's name for one image, several for an entry each, ``()`` for
            none: ``"topview"``, ``"corner"``, ``"corner2"``, ``"corner3"``,
            ``"corner4"``, ``"behindGripper"`` or ``"gripperPOV"``. Images are
            upright (the package's corner cameras are upside down).
        image_size: side of the images in pixels.
        max_steps: time limit. The scripted experts need 40 to 130 steps; a third of
            the episodes of stick-pull, peg-insert-side and bin-picking take up to 250
            and push-back takes 350.
        stop_on_success: ``terminated`` is True at success; False goes on to the limit.
        options: worker processes and rendering on demand.
        seed: seed of the episode seeds; see ``set_seed``.

    Raises:
        MissingExtraError: the package ``metaworld`` is not installed.
        ValueError: unknown task or camera; lists the known ones. Or rendering on demand
            without cameras.
        RenderingError: images cannot be rendered here.

    Examples:
        >>> env = MetaWorldEnv(["reach", "drawer-close"], num_envs=2)
        >>> td = env.reset(episode_seeds=torch.tensor([0, 1]))
        >>> env.instructions.decode(td["language_instruction"])
        ['reach the goal', 'close the drawer']
        >>> rollout = env.rollout(100, env.make_expert(), break_when_all_done=True)
        >>> rollout["next", "success"].any(1).flatten()
        tensor([True, True])

    Source: McLean et al., "Meta-World+: An Improved, Standardized, RL Benchmark"
    (2025), https://meta-world.github.io.
    """

    #: True = consecutive episode seeds have the tasks in turn.
    tasks_take_turns = True

    def __init__(
        self,
        tasks: str | Sequence[str],
        *,
        num_envs: int = 1,
        cameras: str | Sequence[str] = (),
        image_size: int = 64,
        max_steps: int = 200,
        stop_on_success: bool = True,
        options: SimulatorOptions = SimulatorOptions(),  # noqa: B008 (frozen)
        seed: int | None = None,
    ) -> None:
        names = [tasks] if isinstance(tasks, str) else tasks
        self.tasks = tuple(find_task(name) for name in names)
        if not self.tasks:
            raise ValueError("MetaWorldEnv: expected at least one task, got none.")
        import_extra("metaworld", "metaworld", "MetaWorldEnv")  # before any worker
        camera_names = (cameras,) if isinstance(cameras, str) else tuple(cameras)
        one_image = camera_names == (cameras,)
        pool = SimulatorPool(camera_names, image_size, self._CAMERA_POSITIONS)
        make_env = functools.partial(
            SawyerTasks, self.tasks, pool, one_image, stop_on_success
        )
        rendering = _make_rendering(pool, one_image)
        super().__init__(
            make_env,
            SimulatorInterface(self._observe, "success", rendering),
            instructions=[INSTRUCTIONS[task] for task in self.tasks],
            num_envs=num_envs,
            max_steps=max_steps,
            metadata=self._describe(_make_metadata(pool.cameras)),
            options=options,
            seed=seed,
        )

    # What a variant changes.
    _CAMERA_POSITIONS: Mapping[str, tuple[float, float, float]] = {}

    @staticmethod
    def _observe(observation: dict[str, object]) -> dict[str, object]:
        return observation

    @staticmethod
    def _describe(metadata: RobotDatasetMetadata) -> RobotDatasetMetadata:
        return metadata

    def make_expert(self, *, noise: float = 0.0, seed: int = 0) -> MetaWorldExpert:
        """Make the package's scripted policies."""
        return MetaWorldExpert(noise=noise, seed=seed)


class MetaWorldExpert(TensorDictModuleBase):
    """Follow the instruction with MetaWorld's scripted policies.

    With noise, the executed action differs from the intended one, so demonstrations
    show recovery from errors. The intended action is
    the training target.

    **Reads** ``("observation", "state")`` float32 ``[*B, 39]``, or another entry;
    ``language_instruction`` int64 ids or text ``[*B]``, of the package's tasks.

    **Writes** ``action`` (executed) and ``expert_action`` (intended), float32
    ``[*B, 4]`` in [-1, 1].

    Keyword Args:
        noise: standard deviation of the normal noise on ``action``.
        seed: seed of the noise.
        state_key: of the 39 numbers.

    Raises:
        SchemaError: the state is not ``[*B, 39]``.
        UnknownInstructionError: no task has such an instruction.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> td = TensorDict(observation=TensorDict(state=torch.zeros(39)))
        >>> td["language_instruction"] = "reach the goal"
        >>> MetaWorldExpert()(td)["action"]
        tensor([0., 0., 0., 0.])
    """

    def __init__(
        self,
        *,
        noise: float = 0.0,
        seed: int = 0,
        state_key: NestedKey = STATE_KEY,
    ) -> None:
        super().__init__()
        if not noise >= 0.0:
            raise ValueError(f"MetaWorldExpert: expected noise >= 0, got {noise}.")
        policies = import_extra("metaworld.policies", "metaworld", "MetaWorldExpert")
        self._table = InstructionTable(INSTRUCTIONS.values())
        self._policies = [
            policies.ENV_POLICY_MAP[f"{task}-v3"]() for task in INSTRUCTIONS
        ]
        self._noise = noise
        self._generator = torch.Generator().manual_seed(seed)
        self._state_key = state_key
        self.in_keys = [state_key, INSTRUCTION_KEY]
        self.out_keys = [ACTION_KEY, EXPERT_ACTION_KEY]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the intended action and the one to execute."""
        state = tensordict.get(self._state_key)
        if state.shape != (*tensordict.batch_size, STATE_DIM):
            raise SchemaError(
                f"MetaWorldExpert: expected {[*tensordict.batch_size, STATE_DIM]} at "
                f"{self._state_key}, got {list(state.shape)}."
            )
        instruction = tensordict.get(INSTRUCTION_KEY)
        if is_text(instruction):
            ids = [self._table.id(text) for text in instruction_texts(instruction)]
            instruction = torch.tensor(ids)
        tasks = self._table.rows(instruction.cpu()).flatten().tolist()
        states = state.cpu().double().reshape(-1, STATE_DIM).numpy()
        with warnings.catch_warnings():
            # The policies warn of actions beyond [-1, 1], which are clipped below.
            warnings.simplefilter("ignore", UserWarning)
            actions = [
                self._policies[task].get_action(row)
                for task, row in zip(tasks, states, strict=True)
            ]
        intended = torch.from_numpy(np.stack(actions)).to(torch.float32).clamp(-1, 1)
        intended = intended.reshape(*state.shape[:-1], -1)
        executed = intended
        if self._noise:
            noise = torch.randn(intended.shape, generator=self._generator)
            executed = (intended + self._noise * noise).clamp(-1, 1)
        tensordict.set(EXPERT_ACTION_KEY, intended.to(state.device))
        return tensordict.set(ACTION_KEY, executed.to(state.device))


def _make_rendering(pool: SimulatorPool, one_image: bool) -> RenderSpec | None:
    if not pool.cameras:
        return None
    shape = (pool.image_size, pool.image_size, 3)
    return RenderSpec(
        SawyerTasks.render_images,
        shape if one_image else dict.fromkeys(pool.cameras, shape),
    )


def _make_metadata(cameras: tuple[str, ...]) -> RobotDatasetMetadata:
    frame = [f"hand_{axis}" for axis in "xyz"] + ["gripper_opening"]
    units = ["m"] * 3 + ["1"]
    for thing in ("object_1", "object_2"):
        frame += [f"{thing}_{axis}" for axis in "xyz"]
        frame += [f"{thing}_quaternion_{index}" for index in range(4)]
        units += ["m"] * 3 + ["1"] * 4
    return RobotDatasetMetadata(
        "metaworld",
        embodiment_id="sawyer",
        action_names=("x", "y", "z", "gripper"),
        action_units=("cm", "cm", "cm", "1"),
        action_reference=("delta", "delta", "delta", "absolute"),
        action_space=("end_effector", "end_effector", "end_effector", "gripper"),
        action_low=(-1.0,) * 4,
        action_high=(1.0,) * 4,
        grippers=(GripperConvention(dim=3, open=-1.0, closed=1.0),),
        state_names=(
            *frame,
            *(f"previous_{name}" for name in frame),
            *(f"goal_{axis}" for axis in "xyz"),
        ),
        state_units=(*units, *units, "m", "m", "m"),
        control_frequency_hz=_RATE_HZ,
        cameras=cameras,
    )
