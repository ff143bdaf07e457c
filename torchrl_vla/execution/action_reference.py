"""Check that chunks of actions may be joined."""

from __future__ import annotations

from torchrl_vla.schema.conventions import REFERENCES

#: The way out of everything that takes absolute actions only.
MAKE_ABSOLUTE = (
    "Give the executor an absolute policy: ConvertedPolicy(policy, "
    "metadata.conversion_to(policy_metadata)) of torchrl_vla.spaces."
)


def check_reference(caller: str, action_reference: str) -> None:
    """Refuse to join chunks that are measured from different states.

    A chunk that is relative to the state in which it was made cannot be combined with
    one that was made in another state: the robot would move to the wrong place,
    smoothly. Absolute targets and deltas have no such anchor.

    Args:
        caller: the executor; opens the error message.
        action_reference: what the policy's actions are measured from.

    Raises:
        ValueError: it is ``"relative"``, or none of ``REFERENCES``.

    Examples:
        >>> check_reference("RealTimeChunking", "relative")
        Traceback (most recent call last):
        ...
        ValueError: RealTimeChunking: expected an action_reference of 'absolute' or \
'delta', got 'relative'. A chunk is measured from the state in which it was made, so \
two of them cannot be joined. Give the executor an absolute policy: \
ConvertedPolicy(policy, metadata.conversion_to(policy_metadata)) of torchrl_vla.spaces.
    """
    if action_reference not in REFERENCES:
        raise ValueError(
            f"{caller}: expected an action_reference of {list(REFERENCES)}, got "
            f"{action_reference!r}."
        )
    if action_reference == "relative":
        raise ValueError(
            f"{caller}: expected an action_reference of 'absolute' or 'delta', got "
            "'relative'. A chunk is measured from the state in which it was made, so "
            f"two of them cannot be joined. {MAKE_ABSOLUTE}"
        )
