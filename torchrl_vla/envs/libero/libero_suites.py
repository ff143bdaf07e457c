"""Names of LIBERO's suites and of their LIBERO-PRO variants; nothing is imported."""

from __future__ import annotations

from torchrl_vla._internal.suggestions import did_you_mean

#: What LIBERO-PRO changes in a suite: the wording, the objects, their places, the task.
VARIANTS = ("lan", "object", "swap", "task")

#: Steps that OpenVLA's evaluation allows, by suite.
#: Source: https://github.com/openvla/openvla, experiments/robot/libero.
MAX_STEPS = {"spatial": 220, "object": 280, "goal": 300, "10": 520, "90": 400}

#: Every suite, as LIBERO names it.
SUITES = tuple(f"libero_{suite}" for suite in MAX_STEPS) + tuple(
    f"libero_{suite}_{variant}"
    for suite in MAX_STEPS
    if suite != "90"
    for variant in VARIANTS
)


def find_suite(name: str) -> str:
    """Return LIBERO's name of a suite.

    Args:
        name: e.g. ``"object"``, ``"libero_object"`` or ``"object_swap"``.

    Raises:
        ValueError: there is no such suite; lists them.

    Examples:
        >>> find_suite("object_swap"), find_suite("libero_10")
        ('libero_object_swap', 'libero_10')
    """
    suite = f"libero_{name.removeprefix('libero_')}"
    if suite not in SUITES:
        short = [known.removeprefix("libero_") for known in SUITES]
        raise ValueError(
            f"LiberoEnv: expected a suite of {short}, got {name!r}."
            f"{did_you_mean(name, [*short, *SUITES])}"
        )
    return suite


def base_suite(suite: str) -> str:
    """Return what a suite is a variant of: a key of :data:`MAX_STEPS`.

    Examples:
        >>> base_suite("libero_object_swap"), base_suite("libero_object")
        ('object', 'object')
    """
    return suite.split("_")[1]


def is_reworded(suite: str) -> bool:
    """Return whether a suite's instructions differ from its tasks' names.

    Examples:
        >>> is_reworded("libero_goal_lan"), is_reworded("libero_goal_swap")
        (True, False)
    """
    return suite.rpartition("_")[2] in ("lan", "task")
