"""Arguments of TorchRL's and LeRobot's classes, read as those of our replay buffer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torchrl_vla._internal.suggestions import did_you_mean
from torchrl_vla.errors import SettingsError

_OWNER = "LeRobotExperienceReplay"
#: LeRobot's tolerance of a delta against the frame times.
_TOLERANCE_S = 1e-4
_REPLACED = {
    "root": "source=<the dataset's folder>, or cache_folder= for our copy of it",
    "download": "source=<folder>, or HF_HUB_OFFLINE=1, to do without the network",
    "key_map": "rename={old: new}",
    "decode_video": "cameras=(), which decodes none",
    "video_backend": "decoder=",
    "image_transforms": "transform=",
    "rehydrate": "history_size= and chunk_size=, gathered from the whole episode",
    "strict_length": "slice_len= of the shortest episode",
    "collate_fn": "transform=",
    "writer": "no writer: the data are not written to",
    "pin_memory": "sample().pin_memory()",
    "prefetch": "no prefetching: images are decoded by several threads",
    "delta_indices": "chunk_size=, first_step= and history_size=",
}


class Windows(NamedTuple):
    """Lengths of the action chunk and the history of a sample."""

    chunk_size: int | None
    first_step: int
    history_size: int


def check_names(options: Mapping[str, object], known: Sequence[str]) -> None:
    """Refuse an argument that is none of ours; name what replaces TorchRL's.

    Raises:
        SettingsError: names the replacement, or the closest argument.
    """
    for name in options:
        if name not in known:
            advice = f"It takes {sorted(known)}.{did_you_mean(name, known)}"
            if name in _REPLACED:
                advice = f"Pass {_REPLACED[name]}."
            raise SettingsError(
                f"{_OWNER}: expected no argument {name!r}, got "
                f"{options[name]!r}. {advice}"
            )


def read_delta_timestamps(
    deltas_s: Mapping[str, Sequence[float]], rate_hz: float
) -> Windows:
    """Return the windows that LeRobot's ``delta_timestamps`` describe.

    Args:
        deltas_s: seconds from the current frame, by LeRobot's feature.
        rate_hz: frames per second.

    Raises:
        SettingsError: the times are not consecutive frames, those of observations do
            not end at the current one, or differ.

    Examples:
        >>> read_delta_timestamps({"action": [0.0, 0.1, 0.2]}, 10.0)
        Windows(chunk_size=3, first_step=0, history_size=1)
        >>> read_delta_timestamps({"observation.state": [-0.1, 0.0]}, 10.0)
        Windows(chunk_size=None, first_step=0, history_size=2)
    """
    steps = {name: _frames(name, times, rate_hz) for name, times in deltas_s.items()}
    action = steps.pop("action", None)
    foreign = sorted(name for name in steps if not name.startswith("observation."))
    histories = set(steps.values())
    if foreign or len(histories) > 1 or any(frames[-1] for frames in histories):
        raise SettingsError(
            f"{_OWNER}: expected delta_timestamps of 'action' and of observations, all "
            f"of these alike and up to 0.0, got {dict(deltas_s)}. Pass history_size= "
            "and chunk_size=, and gather other features from dataset.frames."
        )
    return Windows(
        chunk_size=None if action is None else len(action),
        first_step=0 if action is None else action[0],
        history_size=len(next(iter(histories), (0,))),
    )


def _frames(name: str, times_s: Sequence[float], rate_hz: float) -> tuple[int, ...]:
    frames = tuple(round(time_s * rate_hz) for time_s in times_s)
    late = [
        abs(time_s - frame / rate_hz) > _TOLERANCE_S
        for time_s, frame in zip(times_s, frames, strict=True)
    ]
    if any(late) or not frames or frames != (*range(frames[0], frames[-1] + 1),):
        raise SettingsError(
            f"{_OWNER}: expected delta_timestamps of consecutive frames at "
            f"{rate_hz:g} Hz for {name!r}, got {list(times_s)}. Pass [step / "
            f"{rate_hz:g} for step in range(...)], or chunk_size= and history_size=."
        )
    return frames
