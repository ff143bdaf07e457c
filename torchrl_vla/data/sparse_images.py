"""Recording of an expert with an image at every n-th frame only."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase

from torchrl_vla.errors import SettingsError
from torchrl_vla.schema import (
    IMAGE_IS_STALE_KEY,
    IS_INIT_KEY,
    OBSERVATION_NEEDED_KEY,
)


class EveryNthImage(TensorDictModuleBase):
    """Call an expert, and ask for an image at every ``n``-th frame of an episode.

    The expert reads no image. Frames 0, ``n``, ``2 n``, ... get one.

    **Reads** the expert's keys and ``is_init`` bool ``[*B, 1]``. **Writes** what the
    expert writes and ``observation_needed`` bool ``[*B, 1]``.

    Args:
        expert: writes ``action``.
        env: where it acts.
        interval: ``n``.

    Raises:
        SettingsError: ``interval < 1``, or the environment renders at every step.
    """

    def __init__(
        self, expert: TensorDictModuleBase, env: EnvBase, interval: int
    ) -> None:
        super().__init__()
        if interval < 1:
            raise SettingsError(
                f"collect: expected image_interval >= 1, got {interval}."
            )
        if IMAGE_IS_STALE_KEY not in env.observation_spec.keys(True):
            raise SettingsError(
                f"collect: expected an environment that renders on demand with "
                f"image_interval={interval}, got {type(env).__name__}, which renders "
                "every step or nothing. Make it with images and "
                "render_on_demand=True."
            )
        self.expert, self.interval = expert, interval
        self.in_keys = [*expert.in_keys, IS_INIT_KEY]
        self.out_keys = [*expert.out_keys, OBSERVATION_NEEDED_KEY]
        self._frame: torch.Tensor | None = None

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the action, and whether its result is to be rendered."""
        is_init = tensordict.get(IS_INIT_KEY)
        frame = torch.zeros_like(is_init, dtype=torch.int64)
        if self._frame is not None:
            frame = torch.where(is_init, frame, self._frame)
        self._frame = frame + 1
        tensordict = self.expert(tensordict)
        needed = self._frame % self.interval == 0
        return tensordict.set(OBSERVATION_NEEDED_KEY, needed)
