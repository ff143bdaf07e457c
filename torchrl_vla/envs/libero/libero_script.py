"""Scripted motion that picks an object up and puts it down."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torchrl_vla.envs.libero.libero_simulator import LiberoSimulation

_OPEN, _CLOSED = -1.0, 1.0
_DOWN = np.diag([1.0, -1.0, -1.0])  # rotation of a hand that points down, unturned
_STEP_M, _STEP_RAD = 0.05, 0.5  # motion of the hand at action 1
_FASTEST_TURN = 0.3
_CLOSING_STEPS, _OPENING_STEPS = 10, 12
_PATIENCE = 25  # steps that a descent may take, where something is in the way
_LOST_M = 0.04  # an object that has moved so far in the hand has been dropped


@dataclass(frozen=True)
class Grasp:
    """Describe how to pick an object up and where to put it.

    Args:
        object: body that is picked up, as LIBERO names the object.
        goal: object or site to put it on or into.
        yaw: turn of the hand about the vertical, in rad; 0 closes along y.
        offset: where the hand closes, from the object's origin, in m.
        place: where the hand opens, from the goal's origin, in m, beside the offset.
        carry: height above the goal at which the object is carried, in m.
        hover: height above the grasp from which the hand descends, in m.
    """

    object: str
    goal: str
    yaw: float = 0.0
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    place: tuple[float, float, float] = (0.0, 0.0, 0.22)
    carry: float = 0.22
    hover: float = 0.14


class Phase(Enum):
    """Part of the motion; the value is what of the noise it bears."""

    HOVER = "hover"
    DESCEND = "descend"
    CLOSE = "close"
    LIFT = "lift"
    CARRY = "carry"
    LOWER = "lower"
    OPEN = "open"


#: What part of the noise a phase bears; none while the fingers move.
_NOISE = {Phase.DESCEND: 0.3, Phase.LOWER: 0.3, Phase.CLOSE: 0.0, Phase.OPEN: 0.0}


class PickAndPlace:
    """Hover, descend, close, lift, carry, lower and open; again where it failed.

    Args:
        simulation: whose objects and hand it reads.
        grasp: of the task.
    """

    def __init__(self, simulation: LiberoSimulation, grasp: Grasp) -> None:
        self._simulation, self._grasp = simulation, grasp
        turn = rotation_about_z(grasp.yaw)
        self._target_rotation = turn @ _DOWN
        self._phase, self._steps = Phase.HOVER, 0
        self._held_at = np.zeros(3)

    @property
    def noise_scale(self) -> float:
        """Part of the noise that the next action bears."""
        return _NOISE.get(self._phase, 1.0)

    def act(self) -> np.ndarray:
        """Return the next action, float64 ``[7]``, and choose the phase after it."""
        hand, grasp = self._simulation.hand_position(), self._grasp
        thing = self._simulation.place_of(grasp.object)
        goal = self._simulation.place_of(grasp.goal)
        turn = rotation_vector(
            self._target_rotation @ self._simulation.hand_rotation().T
        )
        at = thing + grasp.offset
        over = goal + np.array([*grasp.place[:2], 0.0])
        if self._held_at.any():  # keep the object, not the hand, over the goal
            over[:2] -= self._held_at[:2]
        height = goal[2] + grasp.carry
        target = {
            Phase.HOVER: np.array([*at[:2], at[2] + grasp.hover]),
            Phase.DESCEND: at,
            Phase.CLOSE: hand,
            Phase.LIFT: np.array([*hand[:2], height]),
            Phase.CARRY: np.array([*over[:2], height]),
            Phase.LOWER: np.array([*over[:2], goal[2] + grasp.place[2]]),
            Phase.OPEN: hand,
        }[self._phase]
        action = np.zeros(7)
        action[:3] = np.clip((target - hand) / _STEP_M, -1.0, 1.0)
        action[3:6] = np.clip(turn / _STEP_RAD, -_FASTEST_TURN, _FASTEST_TURN)
        holds = (Phase.CLOSE, Phase.LIFT, Phase.CARRY, Phase.LOWER)
        action[6] = _CLOSED if self._phase in holds else _OPEN
        self._steps += 1
        following = self._following(target - hand, turn, thing - hand)
        if following is not self._phase:
            self._phase, self._steps = following, 0
        return action

    def _following(
        self, error: np.ndarray, turn: np.ndarray, held: np.ndarray
    ) -> Phase:
        """Return the phase of the next step."""
        far, aside = np.linalg.norm(error), np.linalg.norm(error[:2])
        phase, steps = self._phase, self._steps
        if phase is Phase.HOVER:
            there = aside < 0.015 and far < 0.04 and np.linalg.norm(turn) < 0.12
            return Phase.DESCEND if there else phase
        if phase is Phase.DESCEND:
            return Phase.CLOSE if far < 0.006 or steps > _PATIENCE else phase
        if phase is Phase.CLOSE:
            self._held_at = held
            return Phase.LIFT if steps > _CLOSING_STEPS else phase
        if phase is Phase.OPEN:
            return Phase.HOVER if steps > _OPENING_STEPS else phase
        if np.linalg.norm(held - self._held_at) > _LOST_M:
            return Phase.OPEN
        if phase is Phase.LIFT:
            return Phase.CARRY if abs(error[2]) < 0.03 else phase
        if phase is Phase.CARRY:
            there = aside < 0.015 and far < 0.04
            return Phase.LOWER if there else phase
        return Phase.OPEN if far < 0.015 or steps > _PATIENCE else phase


def rotation_about_z(angle_rad: float) -> np.ndarray:
    """Return the rotation matrix of a turn about the vertical."""
    cosine, sine = np.cos(angle_rad), np.sin(angle_rad)
    return np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])


def rotation_vector(matrix: np.ndarray) -> np.ndarray:
    """Return a rotation's axis times its angle, in rad, below half a turn.

    Examples:
        >>> rotation_vector(rotation_about_z(0.5)).round(3).tolist()
        [0.0, 0.0, 0.5]
    """
    angle = np.arccos(np.clip((np.trace(matrix) - 1.0) / 2.0, -1.0, 1.0))
    skew = matrix - matrix.T
    axis = np.array([skew[2, 1], skew[0, 2], skew[1, 0]])
    length = np.linalg.norm(axis)
    return axis / length * angle if length > 1e-9 else np.zeros(3)
