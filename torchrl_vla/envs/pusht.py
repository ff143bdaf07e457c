"""PushT, the T-shaped block to push onto its target, in the canonical schema."""

from __future__ import annotations

import contextlib
import functools
import io
import warnings

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from torchrl_vla.envs.gymnasium import GymnasiumEnv
from torchrl_vla.envs.lazy_rendering import RenderSpec
from torchrl_vla.envs.observation_keys import ObservationKeys
from torchrl_vla.schema import RobotDatasetMetadata, import_extra

#: What the episodes of LeRobot's PushT datasets are told.
PUSHT_INSTRUCTION = "Push the T-shaped block onto the T-shaped target."

_BOARD = 512.0  # side of the board in pixels, the unit of positions and actions
_RATE_HZ = 10.0
_WITHOUT_PIXELS = "environment_state_agent_pos"


class PushTEnv(GymnasiumEnv):
    """Push a T-shaped block onto its target with a round finger, seen from above.

    Observations are, number for number, those of LeRobot's own environment: with
    images what it calls ``obs_type="pixels_agent_pos"``, without them and with the
    environment's state ``"environment_state_agent_pos"``. Success is 95 % of the target
    covered; the reward is the share that is covered, 1 at success. Two surprises: an
    action beyond the board is executed as it is, as LeRobot does (the finger stops at
    the wall); and LeRobot's evaluation loop tells policies nothing here, not the
    sentence that its datasets have.

    **Reads** ``action`` float32 ``[N, 2]``: where the finger is to go, x and y in
    pixels of the board, 0..512.

    **Writes** ``("observation", "state")`` float32 ``[N, 2]``, the finger's x and y;
    with ``images`` ``("observation", "image")`` uint8 ``[N, 3, image_size,
    image_size]``; with ``environment_state`` ``("observation", "environment_state")``
    float32 ``[N, 16]``, x and y of the block's corners; and what
    :class:`GymnasiumEnv` writes.

    Keyword Args:
        num_envs: ``N``, the episodes that run side by side.
        images: True = write the image from above.
        environment_state: True = write where the block is.
        image_size: side of the images in pixels.
        max_steps: time limit.
        instruction: what every episode is told.
        num_workers: processes that share the rows; 0 steps them in this one.
        render_on_demand: True = draw only where the policy looks, as
            :class:`GymnasiumEnv` says.
        seed: seed of the episode seeds; see ``set_seed``.

    Raises:
        MissingExtraError: the package ``gym-pusht`` is not installed.
        ValueError: neither images nor the environment's state were asked for; or
            drawing on demand without images.

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
        num_workers: int = 0,
        render_on_demand: bool = False,
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
            observe=ObservationKeys(
                state=("agent_pos",),
                environment_state=("environment_state",) if environment_state else (),
            ),
            instructions=instruction,
            success_key="is_success",
            num_envs=num_envs,
            max_steps=max_steps,
            num_workers=num_workers,
            metadata=_make_metadata(images),
            drawing=RenderSpec(PushTSimulator.draw, (image_size, image_size, 3))
            if images
            else None,
            render_on_demand=render_on_demand,
            seed=seed,
        )


class PushTSimulator(gymnasium.Wrapper):
    """Run the package's simulation, drawn apart from its steps.

    The package would draw every observation with pixels. The action space is
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

    def draw(self) -> np.ndarray:
        """Return what the package shows under ``pixels``, uint8 ``[h, w, 3]``."""
        # The package draws in get_obs and looks there at what it is to observe.
        simulation = self.env.unwrapped
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
        action_units="px",
        action_reference="absolute",
        action_space="end_effector",
        action_low=(0.0, 0.0),
        action_high=(_BOARD, _BOARD),
        state_names=("x", "y"),
        state_units="px",
        control_frequency_hz=_RATE_HZ,
        cameras=("image",) if images else (),
    )
