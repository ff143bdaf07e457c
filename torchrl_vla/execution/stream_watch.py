"""Signs that two streams of steps use one executor."""

from __future__ import annotations

from torch import Tensor

_CLEAR = 4.0  # how many times farther a jump is than what it is compared with


class StreamWatch:
    """Find two streams among steps that do not carry from which stream they are.

    There are two signs, both on the first step after the beginning of an episode: the
    step before was the beginning of an episode, too, as where two robots start
    together; or the observation is back where it was before the beginning, in a jump
    that no step has made, as where one starts while the other is at work. Robots in the
    same state, or in no order, show neither: name the streams.

    Examples:
        >>> import torch
        >>> watch = StreamWatch()
        >>> left, right = torch.tensor([0.0]), torch.tensor([9.0])
        >>> watch.begin(left), watch.find_other_stream(left), watch.begin(right)
        (None, None, None)
        >>> watch.find_other_stream(left)
        'whose observation jumped back to that before the last beginning'
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Forget all steps, where a step has shown its stream."""
        self._last: Tensor | None = None
        self._before: Tensor | None = None
        self._pace = 0.0
        self._beginnings = 0

    def begin(self, seen: Tensor | None) -> None:
        """Note the first step of an episode.

        Args:
            seen: what the policy reads, as one vector; None = no numbers.
        """
        self._before, self._last = self._last, _copied(seen)
        self._beginnings += 1

    def find_other_stream(self, seen: Tensor | None) -> str | None:
        """Return the sign of another stream on a later step; None = there is none."""
        if self._beginnings > 1:
            return "after two episodes that began one after the other"
        last, before = self._last, self._before
        if seen is not None and last is not None and seen.shape == last.shape:
            jump = (seen - last).norm().item()
            if self._beginnings and before is not None and before.shape == seen.shape:
                back = (seen - before).norm().item()
                if jump > _CLEAR * max(back, self._pace):
                    return (
                        "whose observation jumped back to that before the last "
                        "beginning"
                    )
            self._pace = max(self._pace, jump)
        self._last, self._beginnings = _copied(seen), 0
        return None


def _copied(seen: Tensor | None) -> Tensor | None:
    return None if seen is None else seen.clone()  # a robot may reuse its buffer
