"""Options of a dataset, which every command that names one gives it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class DatasetOptions:
    """Options of a dataset; those that its format does not have are refused.

    Args:
        cameras: Cameras to read. LeRobot: by the last part of their names, e.g.
            `front`; left out, all. HDF5: entries of `obs`; left out, none.
        rename: Names in the dataset and their new names, in pairs. LeRobot: features,
            e.g. `observation.joints observation.state`; several vectors with one new
            name are concatenated. HDF5: cameras.
        exclude_episodes: Episodes to leave out.
        statistics: `exact`, of the frames, or `stored`, LeRobot's, whose quantiles are
            averages over episodes. Left out, exact.
        tolerance_s: LeRobot: largest distance in seconds of a timestamp from its frame.
            Left out, 0.0001.
        empty_task: LeRobot: text of tasks that are empty beside others.
        revision: LeRobot: branch, tag or commit on the Hub. Left out, main.
        layout: HDF5: `robomimic` or `libero`.
        state_keys: HDF5: entries of `obs` to concatenate to the state.
        flip_images: HDF5: `none`, `vertical` or `rotate_180`; needed with cameras.
        instruction: HDF5: of all episodes; robomimic's files have none.
        filter_key: HDF5: name of a mask, e.g. `train`; left out, all demonstrations.
        convert_to: Folder of a dataset or checkpoint to whose conventions the data are
            converted. A difference without a conversion is refused.
    """

    cameras: tuple[str, ...] | None = None
    rename: dict[str, str] = field(default_factory=dict)
    exclude_episodes: tuple[int, ...] = ()
    statistics: Literal["exact", "stored"] | None = None
    tolerance_s: float | None = None
    empty_task: str | None = None
    revision: str | None = None
    layout: Literal["robomimic", "libero"] | None = None
    state_keys: tuple[str, ...] = ()
    flip_images: Literal["none", "vertical", "rotate_180"] | None = None
    instruction: str | None = None
    filter_key: str | None = None
    convert_to: str | None = None

    def given(self) -> Mapping[str, Any]:
        """Return the options that were given, by name.

        Examples:
            >>> DatasetOptions(tolerance_s=0.01).given()
            {'tolerance_s': 0.01}
        """
        default = vars(NO_DATASET_OPTIONS)
        return {name: x for name, x in vars(self).items() if x != default[name]}


NO_DATASET_OPTIONS = DatasetOptions()
