"""Whether a transform belongs to an environment."""

from __future__ import annotations

from torchrl.envs import Transform


def acts_in_environment(transform: Transform) -> bool:
    """Tell a transform of an environment from one of a buffer, or of nothing.

    A buffer calls the inverse of its transforms on what is written to it; it must not
    reach them as a policy's action. Nested ``Compose`` are looked through.
    """
    try:
        return transform.container is not None
    except ValueError:  # TorchRL's word for a container that is no environment
        return False
