"""PushT, the T-shaped block to push onto its target, in the canonical schema."""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from torchrl_vla.envs.gymnasium import GymnasiumEnv, ObservationKeys
from torchrl_vla.schema import RobotDatasetMetadata, import_extra

#: What the episodes of LeRobot's PushT datasets are told.
PUSHT_INSTRUCTION = "Push the T-shaped block onto the T-shaped target."

_BOARD = 512.0  # side of the board in pixels, the unit of positions and actions
_RATE_HZ = 10.0
_CORNERS = 8  # of the two bars that make the T


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
        images: True = write the picture from above.
        environment_state: True = write where the block is.
        image_size: side of the images in pixels.
        max_steps: time limit.
        instruction: what every episode is told.
        num_workers: processes that share the rows; 0 steps them in this one.
        seed: seed of the episode seeds; see ``set_seed``.

    Raises:
        MissingExtraError: the package ``gym-pusht`` is not installed.
        ValueError: neither images nor the environment's state were asked for.

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
        seed: int | None = None,
    ) -> None:
        if not (images or environment_state):
            raise ValueError(
                "PushTEnv: expected images=True and/or environment_state=True, got "
                "neither. The block is in no other observation."
            )
        import_extra("gym_pusht", "pusht", "PushTEnv")  # before any worker
        super().__init__(
            functools.partial(PushTSimulator, images, environment_state, image_size),
            observe=ObservationKeys(
                state=("agent_pos",),
                images="pixels" if images else None,
                environment_state=("environment_state",) if environment_state else (),
            ),
            instructions=instruction,
            success_key="is_success",
            num_envs=num_envs,
            max_steps=max_steps,
            num_workers=num_workers,
            metadata=_make_metadata(images),
            seed=seed,
        )


class PushTSimulator(gymnasium.Wrapper):
    """Run the package's simulation, with any of its observations together.

    The action space is unbounded: ``GymnasiumEnv`` clips to it, LeRobot does not clip.

    Args:
        images: True = observe ``pixels``.
        environment_state: True = observe ``environment_state``.
        image_size: side of the images in pixels.
    """

    def __init__(self, images: bool, environment_state: bool, image_size: int) -> None:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # pygame's, and its greeting goes to stdout
            package = import_extra("gym_pusht.envs", "pusht", "PushTEnv")
        super().__init__(
            package.PushTEnv(
                obs_type="pixels_agent_pos"
                if images
                else "environment_state_agent_pos",
                observation_width=image_size,
                observation_height=image_size,
            )
        )
        self._adds_corners = images and environment_state
        self.action_space = Box(-np.inf, np.inf, (2,), np.float32)
        if self._adds_corners:
            corners = Box(0.0, _BOARD, (2 * _CORNERS,), np.float64)
            self.observation_space = gymnasium.spaces.Dict(
                {**self.env.observation_space, "environment_state": corners}
            )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin the episode of ``seed``."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._complete(observation), info

    def step(
        self, action: np.ndarray
    ) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Execute one action."""
        observation, *rest = self.env.step(action)
        return (self._complete(observation), *rest)

    def _complete(self, observation: dict[str, Any]) -> dict[str, Any]:
        if self._adds_corners:
            # Asked for as an observation: block.shapes is a set, in no fixed order.
            simulation = self.env.unwrapped
            simulation.obs_type = "environment_state_agent_pos"
            observation |= simulation.get_obs()
            simulation.obs_type = "pixels_agent_pos"
        return observation


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
