"""Ring buffer of the last frames, bounded in time and memory."""

from __future__ import annotations

from collections import deque

from tensordict import TensorDictBase


class FrameRing:
    """Keep the frames of the last seconds, and no more than some memory.

    Args:
        seconds: that are kept.
        megabytes: at most, of the frames' tensors (10^6 bytes).
        rate_hz: frames per second.

    Raises:
        ValueError: a number is not positive.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> ring = FrameRing(seconds=0.5, megabytes=1, rate_hz=10)
        >>> for i in range(8):
        ...     ring.add(TensorDict({"x": torch.tensor([i])}))
        >>> [int(frame["x"]) for frame in ring.take()], len(ring)
        ([3, 4, 5, 6, 7], 0)
    """

    def __init__(self, seconds: float, megabytes: float, rate_hz: float) -> None:
        if min(seconds, megabytes, rate_hz) <= 0:
            raise ValueError(
                "FrameRing: expected positive numbers at 'seconds', 'megabytes' and "
                f"'rate_hz', got {seconds}, {megabytes} and {rate_hz}."
            )
        self.most = max(1, round(seconds * rate_hz))
        self.most_bytes = megabytes * 1e6
        self._frames: deque[tuple[int, TensorDictBase]] = deque()
        self.bytes = 0

    def add(self, frame: TensorDictBase) -> None:
        """Append a frame, and drop the oldest ones beyond the bounds."""
        size = frame.bytes()
        self._frames.append((size, frame))
        self.bytes += size
        while len(self._frames) > self.most or self.bytes > self.most_bytes:
            self.bytes -= self._frames.popleft()[0]

    def take(self) -> list[TensorDictBase]:
        """Return the frames, the oldest first, and empty the ring."""
        frames = [frame for _, frame in self._frames]
        self._frames.clear()
        self.bytes = 0
        return frames

    def __len__(self) -> int:
        return len(self._frames)
