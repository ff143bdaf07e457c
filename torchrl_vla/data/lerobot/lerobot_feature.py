"""Feature declarations of LeRobot's ``info.json``."""

from __future__ import annotations

from typing import NamedTuple, TypedDict

from tensordict import NestedKey

OWNER = "LeRobotDemonstrations"

#: Features that number the frames, with their dtypes.
INDEX_FEATURES = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
IMAGE_DTYPES = ("image", "video")
TEXT_DTYPES = ("string", "language")
NUMBER_DTYPES = (
    "bool",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    *(f"float{bits}" for bits in (16, 32, 64)),
)


class FeatureInfo(TypedDict, total=False):
    """Entry of one feature in ``info.json``."""

    dtype: str
    shape: list[int] | None
    names: list[object] | dict[str, object] | None
    info: dict[str, object] | None
    video_info: dict[str, object] | None


class Feature(NamedTuple):
    """One feature of a dataset by LeRobot's name; ``names`` are of its dimensions.

    ``key`` is our key of its values. Where several features share one, ``columns`` are
    the dimensions ``(first, end)`` of this one.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...] | None = None
    is_depth: bool = False
    key: NestedKey = ""
    columns: tuple[int, int] | None = None

    @property
    def is_image(self) -> bool:
        """True = images in parquet or in a video."""
        return self.dtype in IMAGE_DTYPES

    @property
    def is_rgb(self) -> bool:
        """True = images ``[C, h, w]`` that are no depth maps."""
        return self.is_image and not self.is_depth and len(self.shape) == 3

    @property
    def is_number(self) -> bool:
        """True = a column of numbers."""
        return self.dtype in NUMBER_DTYPES

    @property
    def is_vector(self) -> bool:
        """True = each frame has a vector of numbers."""
        return self.is_number and len(self.shape) == 1

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """The shape of one frame in our schema: index features are scalars."""
        return () if self.name in INDEX_FEATURES else self.shape

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(C, h, w)``; ``names`` declares the dimension of the channels."""
        last_is_channels = self.names is None or not self.names[0].startswith("channel")
        h, w, c = self.shape if last_is_channels else (*self.shape[1:], self.shape[0])
        return c, h, w

    def to_info(self) -> FeatureInfo:
        """Return the entry of ``info.json``."""
        names: list[object] | None = None if self.names is None else [*self.names]
        return {"dtype": self.dtype, "shape": list(self.shape), "names": names}
