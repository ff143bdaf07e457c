"""Grasps for LIBERO's tasks, found by trying them in the simulation."""

from __future__ import annotations

from math import radians

from torchrl_vla.envs.libero.libero_provider import LiberoTask
from torchrl_vla.envs.libero.libero_script import Grasp

#: Yaw in degrees and height above the origin in m of the hand at each grocery, and the
#: height above the basket to carry it at. The fingers close across its short side;
#: what is tall is held high, where it has room under the palm, and carried higher.
_GROCERIES = {
    "alphabet_soup": (0, 0.01, 0.22),
    "cream_cheese": (0, 0.0, 0.22),
    "salad_dressing": (90, 0.05, 0.30),
    "bbq_sauce": (90, 0.05, 0.30),
    "ketchup": (90, 0.05, 0.30),
    "tomato_sauce": (0, 0.01, 0.22),
    "butter": (0, 0.0, 0.22),
    "milk": (0, 0.03, 0.30),
    "chocolate_pudding": (0, 0.0, 0.22),
    "orange_juice": (0, 0.03, 0.30),
}


#: Where the bowl of LIBERO-Spatial stands: the side of its rim where it is held, and
#: its height above the plate on the way.
_BOWLS = {
    "between_the_plate_and_the_ramekin": (-0.05, 0.18),
    "next_to_the_ramekin": (0.05, 0.18),
    "from_table_center": (0.05, 0.18),
    "on_the_cookie_box": (0.05, 0.20),
    "on_the_ramekin": (0.05, 0.20),
    "on_the_stove": (0.05, 0.20),
    "next_to_the_plate": (0.05, 0.18),
}

#: Where the bowl of LIBERO-Goal goes: the place's name, and the heights above it where
#: the hand opens and travels.
_GOALS = {
    "put_the_bowl_on_the_stove": ("flat_stove_1_cook_region", 0.07, 0.18),
    "put_the_bowl_on_top_of_the_cabinet": ("wooden_cabinet_1_top_side", 0.06, 0.16),
    "put_the_bowl_on_the_plate": ("plate_1", 0.05, 0.18),
}


def _bowl(goal: str, side: float, opens: float, carry: float) -> Grasp:
    """Grasp the rim at a side of the bowl."""
    offset, place = (0.0, side, 0.035), (0.0, 0.0, opens)
    return Grasp("akita_black_bowl_1", goal, 0.0, offset, place, carry)


def _make_grasps() -> dict[tuple[str, str], Grasp]:
    groceries = {
        ("libero_object", f"pick_up_the_{name}_and_place_it_in_the_basket"): Grasp(
            f"{name}_1", "basket_1", radians(yaw), (0.0, 0.0, height), carry=carry
        )
        for name, (yaw, height, carry) in _GROCERIES.items()
    }
    bowls = {
        (
            "libero_spatial",
            f"pick_up_the_black_bowl_{where}_and_place_it_on_the_plate",
        ): _bowl("plate_1", side, 0.05, carry)
        for where, (side, carry) in _BOWLS.items()
    }
    goals = {
        ("libero_goal", name): _bowl(goal, 0.05, opens, carry)
        for name, (goal, opens, carry) in _GOALS.items()
    }
    return groceries | bowls | goals


#: The grasp of every task that has a script, by suite and the task's name.
GRASPS = _make_grasps()


def find_grasp(task: LiberoTask) -> Grasp:
    """Return the grasp of a task; the wording of its instruction does not matter.

    Raises:
        ValueError: the task has no script; says which have one.
    """
    suite = task.suite.removesuffix("_lan")
    if (suite, task.name) not in GRASPS:
        counts = {name: 0 for name, _ in GRASPS}
        for name, _ in GRASPS:
            counts[name] += 1
        raise ValueError(
            f"LiberoEnv.make_expert: expected a task with a script, got {task.name!r} "
            f"of {task.suite}. There are scripts for tasks of {counts}; "
            "torchrl_vla.envs.libero.libero_grasps lists them."
        )
    return GRASPS[suite, task.name]
