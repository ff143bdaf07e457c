"""Options of profiling, importable without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from torchrl_vla.errors import SettingsError

#: How much a profile records; see :class:`ProfileOptions`.
ProfileMode = Literal["off", "timing", "summary", "trace"]


@dataclass(frozen=True)
class ProfileOptions:
    """Options of profiling a training.

    Args:
        profile_mode: What is recorded. `off`: nothing. `timing`: wall time of the
            sections of every step, as in a training without a profiler. `summary`:
            also a fingerprint of one forward pass and tables of operators, which slow
            the steps down. `trace`: also Chrome traces.
        profile_output_dir: Folder that receives the profile. Left out, `profiling` in
            the folder of the training.

    Raises:
        SettingsError: there is no such mode.

    Examples:
        >>> ProfileOptions("timing").folder_in("runs/mine").as_posix()
        'runs/mine/profiling'
    """

    profile_mode: ProfileMode = "off"
    profile_output_dir: Path | None = None

    def __post_init__(self) -> None:
        modes = get_args(ProfileMode)
        if self.profile_mode not in modes:
            raise SettingsError(
                f"ProfileOptions: expected a profile_mode of {modes}, got "
                f"{self.profile_mode!r}."
            )

    def folder_in(self, training_folder: Path | str) -> Path:
        """Return the folder of the profile of a training in ``training_folder``."""
        if self.profile_output_dir is not None:
            return Path(self.profile_output_dir)
        return Path(training_folder) / "profiling"


#: Profiling is off.
NO_PROFILE = ProfileOptions()
