"""Record of the observation keys that a policy reads."""

from __future__ import annotations

from dataclasses import dataclass

from tensordict import NestedKey, unravel_key

from torchrl_vla.schema.keys import IMAGE_KEY, INSTRUCTION_KEY, STATE_KEY


@dataclass(frozen=True)
class ObservationKeys:
    """Name the observation entries that a policy reads.

    Args:
        image: camera image, or sub-tensordict of cameras; None = not read.
        state: proprioception; None = not read.
        instruction: text, or int64 ids; None = not read.

    Examples:
        >>> ObservationKeys(image=None).present
        [('observation', 'state'), 'language_instruction']
    """

    image: NestedKey | None = IMAGE_KEY
    state: NestedKey | None = STATE_KEY
    instruction: NestedKey | None = INSTRUCTION_KEY

    def __post_init__(self) -> None:
        for name in ("image", "state", "instruction"):
            key = self.__dict__[name]
            object.__setattr__(self, name, None if key is None else unravel_key(key))

    @property
    def present(self) -> list[NestedKey]:
        """The keys that are read, in the order image, state, instruction."""
        keys = (self.image, self.state, self.instruction)
        return [key for key in keys if key is not None]
