"""The 50 tasks of MetaWorld and what a person would say to ask for each."""

from __future__ import annotations

from collections.abc import Sequence

#: Instruction of every task, by the package's name without its version.
INSTRUCTIONS: dict[str, str] = {
    "assembly": "pick up the nut and place it onto the peg",
    "basketball": "dunk the basketball into the basket",
    "bin-picking": "move the block from one bin to the other",
    "box-close": "grasp the cover and close the box with it",
    "button-press-topdown": "press the button from the top",
    "button-press-topdown-wall": "press the button from the top past the wall",
    "button-press": "press the button",
    "button-press-wall": "press the button behind the wall",
    "coffee-button": "push the button on the coffee machine",
    "coffee-pull": "pull the mug away from the coffee machine",
    "coffee-push": "push the mug under the coffee machine",
    "dial-turn": "turn the dial by half a turn",
    "disassemble": "take the nut off the peg",
    "door-close": "close the door",
    "door-lock": "lock the door by turning the lock clockwise",
    "door-open": "open the door",
    "door-unlock": "unlock the door by turning the lock counter-clockwise",
    "hand-insert": "insert the gripper into the hole",
    "drawer-close": "close the drawer",
    "drawer-open": "open the drawer",
    "faucet-open": "open the faucet",
    "faucet-close": "close the faucet",
    "hammer": "hammer the nail into the wall",
    "handle-press-side": "press the handle down from the side",
    "handle-press": "press the handle down",
    "handle-pull-side": "pull the handle up from the side",
    "handle-pull": "pull the handle up",
    "lever-pull": "pull the lever up",
    "peg-insert-side": "insert the peg into the hole on the side",
    "pick-place-wall": "pick up the puck, lift it over the wall and place it",
    "pick-out-of-hole": "pick the puck out of the hole",
    "reach": "reach the goal",
    "push-back": "push the puck back to the goal",
    "push": "push the puck to the goal",
    "pick-place": "pick up the puck and place it at the goal",
    "plate-slide": "slide the plate into the cabinet",
    "plate-slide-side": "slide the plate sideways into the cabinet",
    "plate-slide-back": "slide the plate back out of the cabinet",
    "plate-slide-back-side": "slide the plate sideways out of the cabinet",
    "peg-unplug-side": "unplug the peg from the side",
    "soccer": "kick the ball into the net",
    "stick-push": "grasp the stick and push the thermos with it",
    "stick-pull": "grasp the stick and pull the thermos with it",
    "push-wall": "push the puck around the wall to the goal",
    "reach-wall": "reach the goal behind the wall",
    "shelf-place": "pick up the puck and place it onto the shelf",
    "sweep-into": "sweep the puck into the hole",
    "sweep": "sweep the puck off the table",
    "window-open": "slide the window open",
    "window-close": "slide the window closed",
}

_HARDER: dict[str, tuple[str, ...]] = {
    "medium": (
        "basketball",
        "bin-picking",
        "box-close",
        "coffee-pull",
        "coffee-push",
        "hammer",
        "peg-insert-side",
        "push-wall",
        "soccer",
        "sweep",
        "sweep-into",
    ),
    "hard": (
        "assembly",
        "hand-insert",
        "pick-out-of-hole",
        "pick-place",
        "push",
        "push-back",
    ),
    "very hard": (
        "shelf-place",
        "disassemble",
        "stick-pull",
        "stick-push",
        "pick-place-wall",
    ),
}

#: The tasks by difficulty, in the 28, 11, 6 and 5 of the tables on MT50. Source:
#: LeRobot 0.6.1's ``metaworld_config.json``.
DIFFICULTIES: dict[str, tuple[str, ...]] = {
    "easy": tuple(
        task
        for task in INSTRUCTIONS
        if not any(task in tasks for tasks in _HARDER.values())
    ),
    **_HARDER,
}


#: Suites of tasks. Source: Yu et al., "Meta-World" (CoRL 2019), of which MT50 are all.
SUITES: dict[str, tuple[str, ...]] = {
    "mt10": (
        *("reach", "push", "pick-place", "door-open", "drawer-open", "drawer-close"),
        *("button-press-topdown", "peg-insert-side", "window-open", "window-close"),
    ),
    "mt50": tuple(INSTRUCTIONS),
}


def find_tasks(names: Sequence[str]) -> tuple[str, ...]:
    """Return the tasks of names, each of a task or of a suite.

    Args:
        names: e.g. ``["reach"]`` or ``["mt10"]``.

    Raises:
        ValueError: there is no such task.

    Examples:
        >>> len(find_tasks(["mt50"])), find_tasks(["mt10"])[:2]
        (50, ('reach', 'push'))
    """
    return tuple(
        task for name in names for task in SUITES.get(name) or (find_task(name),)
    )


def find_task(name: str) -> str:
    """Return the name without its version, of a task with or without it.

    Args:
        name: e.g. ``"reach"`` or ``"reach-v3"``.

    Raises:
        ValueError: MetaWorld has no such task; lists the 50.

    Examples:
        >>> find_task("door-open-v3"), INSTRUCTIONS[find_task("push")]
        ('door-open', 'push the puck to the goal')
    """
    task = name.removesuffix("-v3")
    if task not in INSTRUCTIONS:
        raise ValueError(
            f"MetaWorldEnv: expected tasks of {sorted(INSTRUCTIONS)}, got {name!r}."
        )
    return task
