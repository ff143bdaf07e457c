"""MetaWorld environment that shows a policy only what a camera and the arm see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torchrl_vla.envs.metaworld import MetaWorldEnv, MetaWorldExpert
from torchrl_vla.envs.simulator_interface import SimulatorOptions
from torchrl_vla.schema import ENVIRONMENT_STATE_KEY, RobotDatasetMetadata

_CAMERA = "corner2"
_HAND_DIM = 4


class MetaWorldPixelsEnv(MetaWorldEnv):
    """Run MetaWorld tasks from pixels: an image, the hand and the gripper.

    As LeRobot's environment and the published results on MT50 do: one camera,
    ``corner2``, moved close to the table, and a state of four numbers. Where the
    objects and the goal are, only the image tells; the 39 numbers of
    :class:`MetaWorldEnv` are the simulator's state, which the expert reads and a policy
    does not.

    **Reads** ``action`` as :class:`MetaWorldEnv`.

    **Writes** ``("observation", "image")`` uint8 ``[N, 3, image_size, image_size]``;
    ``("observation", "state")`` float32 ``[N, 4]``: the hand's position in m and the
    opening of the gripper; ``("observation", "environment_state")`` float32
    ``[N, 39]``; and what :class:`GymnasiumEnv` writes.

    Args:
        tasks: one name or several.

    Keyword Args:
        num_envs: ``N``, number of environments.
        image_size: side of the images in pixels.
        max_steps: time limit; 500 in LeRobot's evaluation.
        options: worker processes and rendering on demand.
        seed: seed of the episode seeds.

    Raises:
        MissingExtraError: the package ``metaworld`` is not installed.
        ValueError: unknown task.
        RenderingError: images cannot be rendered here.

    Examples:
        >>> env = MetaWorldPixelsEnv("reach", image_size=32)
        >>> observation = env.reset()["observation"]
        >>> observation["state"].shape, observation["image"].shape
        (torch.Size([1, 4]), torch.Size([1, 3, 32, 32]))

    Source: LeRobot, ``src/lerobot/envs/metaworld.py``.
    """

    _CAMERA_POSITIONS = {_CAMERA: (0.75, 0.075, 0.7)}

    def __init__(
        self,
        tasks: str | Sequence[str],
        *,
        num_envs: int = 1,
        image_size: int = 64,
        max_steps: int = 500,
        options: SimulatorOptions = SimulatorOptions(),  # noqa: B008 (frozen)
        seed: int | None = None,
    ) -> None:
        super().__init__(
            tasks,
            num_envs=num_envs,
            cameras=_CAMERA,
            image_size=image_size,
            max_steps=max_steps,
            options=options,
            seed=seed,
        )

    def make_expert(self, *, noise: float = 0.0, seed: int = 0) -> MetaWorldExpert:
        """Make the package's scripted policies, which read the simulator's state."""
        return MetaWorldExpert(noise=noise, seed=seed, state_key=ENVIRONMENT_STATE_KEY)

    @staticmethod
    def _observe(observation: dict[str, object]) -> dict[str, object]:
        state = observation["state"]
        return {**observation, "state": state[:_HAND_DIM], "environment_state": state}  # type: ignore[index]

    @staticmethod
    def _describe(metadata: RobotDatasetMetadata) -> RobotDatasetMetadata:
        assert metadata.state_names is not None
        assert metadata.state_units is not None
        return replace(
            metadata,
            dataset_id="metaworld_pixels",
            state_dim=_HAND_DIM,
            state_names=metadata.state_names[:_HAND_DIM],
            state_units=metadata.state_units[:_HAND_DIM],
        )
