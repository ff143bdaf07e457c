"""PushT environment: a T-shaped block to push onto its target."""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from torchrl_vla.envs.gymnasium import GymnasiumEnv
from torchrl_vla.envs.lazy_rendering import RenderSpec
from torchrl_vla.envs.simulator_interface import SimulatorInterface, SimulatorOptions
from torchrl_vla.envs.simulator_keys import SimulatorKeys
from torchrl_vla.schema import RobotDatasetMetadata, import_extra

#: Instruction of LeRobot's PushT datasets.
PUSHT_INSTRUCTION = "Push the T-shaped block onto the T-shaped target."

_BOARD = 512.0  # side of the board in pixels, the unit of positions and actions
_RATE_HZ = 10.0
_WITHOUT_PIXELS = "environment_state_agent_pos"


class PushTEnv(GymnasiumEnv):
    """Push a T-shaped block onto its target with a round finger, seen from above.

    Observations are, number for number, those of LeRobot's own environment: with
    images what it calls ``obs_type="pixels_agent_pos"``, without them and with the
    environment's state ``"environment_state_agent_pos"``. Success is 95 % of the target
    covered; the reward is the covered share, 1 at success.

    Note:
        An action beyond the board is not clipped, as in LeRobot (the finger stops at
        the wall). LeRobot's evaluation loop passes no instruction here, although its
        datasets have a sentence.

    **Reads** ``action`` float32 ``[N, 2]``: target of the finger, x and y in
    pixels of the board, 0..512.

    **Writes** ``("observation", "state")`` float32 ``[N, 2]``, the finger's x and y;
    with ``images`` ``("observation", "image")`` uint8 ``[N, 3, image_size,
    image_size]``; with ``environment_state`` ``("observation", "environment_state")``
    float32 ``[N, 16]``, x and y of the block's corners; and what
    :class:`GymnasiumEnv` writes.

    Keyword Args:
        num_envs: ``N``, number of environments.
        images: True = write the image from above.
        environment_state: True = write the block's corners.
        image_size: side of the images in pixels.
        max_steps: time limit.
        instruction: of every episode.
        options: worker processes and rendering on demand.
        seed: seed of the episode seeds; see ``set_seed``.

    Raises:
        MissingExtraError: the package ``gym-pusht`` is not installed.
        ValueError: neither images nor the environment's state; or
            rendering on demand without images.

    Examples:
        >>> import torch
        >>> env = PushTEnv(environment_state=True, images=False)
        >>> td = env.reset(episode_seeds=torch.tensor([3]))
        >>> td["observation", "state"]
        tensor([[374.,  84.]])
        >>> td["observation", "environment_state"].shape
        torch.Size([1, 16])

    Source: Chi et al., "Diffusion Policy: Visuomotor Policy Learning via Action
    Diffusion" (2023), https://github.com/huggingface/gym-pusht.
    """

    def __init__(
        self,
        *,
        num_envs: int = 1,
        images: bool = True,
        environment_state: bool = False,
        image_size: int = 96,
        max_steps: int = 300,
        instruction: str = PUSHT_INSTRUCTION,
        options: SimulatorOptions = SimulatorOptions(),  # noqa: B008 (frozen)
        seed: int | None = None,
    ) -> None:
        if not (images or environment_state):
            raise ValueError(
                "PushTEnv: expected images=True and/or environment_state=True, got "
                "neither. The block is in no other observation."
            )
        import_extra("gym_pusht", "pusht", "PushTEnv")  # before any worker
        super().__init__(
            functools.partial(PushTSimulator, image_size),
            SimulatorInterface(
                SimulatorKeys(
                    state=("agent_pos",),
                    environment_state=("environment_state",)
                    if environment_state
                    else (),
                ),
                "is_success",
                RenderSpec(PushTSimulator.render_images, (image_size, image_size, 3))
                if images
                else None,
            ),
            instructions=instruction,
            num_envs=num_envs,
            max_steps=max_steps,
            metadata=_make_metadata(images),
            options=options,
            seed=seed,
        )


class PushTSimulator(gymnasium.Wrapper):
    """Run the package's simulation, rendered apart from its steps.

    The package would render every observation with pixels. The action space is
    unbounded: ``GymnasiumEnv`` clips to it, LeRobot does not clip.

    Args:
        image_size: side of the images in pixels.
    """

    def __init__(self, image_size: int) -> None:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # pygame's, and its greeting goes to stdout
            package = import_extra("gym_pusht.envs", "pusht", "PushTEnv")
        super().__init__(
            package.PushTEnv(
                obs_type=_WITHOUT_PIXELS,
                observation_width=image_size,
                observation_height=image_size,
            )
        )
        self.action_space = Box(-np.inf, np.inf, (2,), np.float32)

    def render_images(self) -> np.ndarray:
        """Return the package's ``pixels``, uint8 ``[h, w, 3]``."""
        # The package renders in get_obs, according to obs_type.
        simulation: Any = self.env.unwrapped
        simulation.obs_type = "pixels"
        try:
            return simulation.get_obs()
        finally:
            simulation.obs_type = _WITHOUT_PIXELS


def _make_metadata(images: bool) -> RobotDatasetMetadata:
    return RobotDatasetMetadata(
        "pusht",
        embodiment_id="pusht",
        action_names=("x", "y"),
        action_units=("px", "px"),
        action_reference=("absolute", "absolute"),
        action_space=("end_effector", "end_effector"),
        action_low=(0.0, 0.0),
        action_high=(_BOARD, _BOARD),
        state_names=("x", "y"),
        state_units=("px", "px"),
        control_frequency_hz=_RATE_HZ,
        cameras=("image",) if images else (),
    )
