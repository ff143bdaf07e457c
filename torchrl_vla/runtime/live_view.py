"""Live view of a run in the Rerun viewer (extra ``rerun``)."""

from __future__ import annotations

from pathlib import Path

from tensordict import TensorDictBase, is_tensor_collection
from torch import Tensor

from torchrl_vla._internal.extras import import_extra
from torchrl_vla.runtime.robot_env import IS_HELD_KEY, RobotEnv
from torchrl_vla.schema import (
    ACTION_KEY,
    IMAGE_KEY,
    IS_INTERVENTION_KEY,
    OBSERVED_AT_KEY,
    PREVIOUS_ACTION_KEY,
    STATE_KEY,
)


class LiveView:
    """Show a run's images, joint curves and latencies in the Rerun viewer.

    It is a listener of a :class:`RobotRun`. Without a file it starts the viewer; with
    one it writes what the viewer opens later. Logging copies to a thread of Rerun's.

    **Reads** a step ``[1]`` of :class:`RobotEnv` with its ``next``: images,
    ``("observation", "state")``, ``action`` (what was asked for) and
    ``next.previous_action`` (what was sent).

    Args:
        env: whose steps are shown: its robot's names and its loop's latencies.
        file: that receives the run (``.rrd``); None = the viewer.

    Raises:
        MissingExtraError: the extra ``rerun`` is not installed.
    """

    def __init__(self, env: RobotEnv, file: Path | str | None = None) -> None:
        self._rerun = import_extra("rerun", "rerun", "LiveView")
        metadata = env.metadata
        self._stream = self._rerun.RecordingStream(f"torchrl_vla/{metadata.dataset_id}")
        if file is None:
            self._stream.spawn()
        else:
            self._stream.save(str(file))
        self._states = metadata.state_names
        self._actions = metadata.action_names
        self._statistics = env.loop.statistics
        self._step = 0

    def __call__(self, step: TensorDictBase) -> None:
        """Show one step."""
        self._stream.set_time("step", sequence=self._step)
        instant_s = step.get(OBSERVED_AT_KEY).item()
        self._stream.set_time("robot_clock", duration=instant_s)
        self._step += 1
        images = step.get(IMAGE_KEY, None)
        if images is not None:
            named = images if is_tensor_collection(images) else {"image": images}
            for camera, image in named.items():
                pixels = image[0].permute(1, 2, 0).contiguous().cpu().numpy()
                self._stream.log(f"camera/{camera}", self._rerun.Image(pixels))
        self._curves("state", step.get(STATE_KEY)[0], self._states)
        self._curves("asked", step.get(ACTION_KEY)[0], self._actions)
        sent = step.get(("next", PREVIOUS_ACTION_KEY))[0]
        self._curves("sent", sent, self._actions)
        found = self._statistics
        for name, seconds in (("period", found.periods_s), ("work", found.works_s)):
            if seconds:
                value = self._rerun.Scalars(1000 * seconds[-1])
                self._stream.log(f"latency/{name}_ms", value)
        for key in (IS_HELD_KEY, IS_INTERVENTION_KEY):
            flag = step.get(key, None)
            if flag is not None:
                value = self._rerun.Scalars(float(flag.item()))
                self._stream.log(f"flag/{key}", value)

    def close(self) -> None:
        """Write what was not written yet."""
        self._stream.flush()
        self._stream.disconnect()

    def _curves(self, kind: str, values: Tensor, names: tuple[str, ...] | None) -> None:
        numbers = values.tolist()
        for index, number in enumerate(numbers):
            name = names[index] if names is not None else str(index)
            path = f"joint/{name}/{kind}"
            self._stream.log(path, self._rerun.Scalars(number))
