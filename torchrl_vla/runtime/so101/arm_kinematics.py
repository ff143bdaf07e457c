"""Forward and inverse kinematics of the SO-101 arm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from torchrl_vla.runtime.so101.arm_model import TIP_SITE, import_mujoco

if TYPE_CHECKING:
    from mujoco import MjModel

_ARM = slice(0, 5)  # the gripper's joint does not move the site
_AXIS_WEIGHT_M = 0.03  # one radian off the vertical counts as 3 cm off the place
_DAMPING = 0.01
_LARGEST_STEP_RAD = 0.3


class ArmKinematics:
    """Convert between joint angles and the place of the tip, in rad and m.

    ``joints`` ``[6]`` are those of the model, the gripper's last. The inverse is damped
    least squares on MuJoCo's jacobians: with ``e`` the error of place and direction,
    ``dq = J^T (J J^T + damping^2 I)^-1 e``, within the joint limits.

    Args:
        model: the arm's ``mujoco.MjModel``.

    Examples:
        >>> from torchrl_vla.runtime.so101.arm_model import make_arm_model
        >>> kinematics = ArmKinematics(make_arm_model(()))
        >>> joints = kinematics.solve(np.array([0.2, 0.1, 0.05]), np.zeros(6))
        >>> kinematics.tip(joints).round(3) + 0.0
        array([0.2 , 0.1 , 0.05])

    Source: Y. Nakamura and H. Hanafusa, "Inverse kinematic solutions with singularity
    robustness for robot manipulator control" (1986).
    """

    def __init__(self, model: MjModel) -> None:
        self._mujoco = import_mujoco()
        self._model, self._data = model, self._mujoco.MjData(model)
        self._site = model.site(TIP_SITE).id

    def tip(self, joints: np.ndarray) -> np.ndarray:
        """Return the place of the tip, m ``[3]``, in the frame of the base."""
        self._place(joints)
        return self._data.site_xpos[self._site].copy()

    def approach(self, joints: np.ndarray) -> np.ndarray:
        """Return the direction out of the gripper, a unit vector ``[3]``."""
        self._place(joints)
        return -self._data.site_xmat[self._site].reshape(3, 3)[:, 2]

    def solve(
        self, place: np.ndarray, joints: np.ndarray, iterations: int = 100
    ) -> np.ndarray:
        """Return joints that bring the tip to a place, pointing down if it can.

        Args:
            place: wanted place of the tip, m ``[3]``.
            joints: where the search starts, rad ``[6]``; the gripper's stays.
            iterations: steps of the search at most.

        Returns:
            Joints within their limits, rad ``[6]``. Where the place is out of reach,
            the tip is near it: compare :meth:`tip`.
        """
        out = np.array(joints, float)
        low, high = self._model.jnt_range[_ARM].T
        move, turn = np.zeros((2, 3, self._model.nv))
        for _ in range(iterations):
            self._place(out)
            axis = -self._data.site_xmat[self._site].reshape(3, 3)[:, 2]
            error = np.concatenate(
                [
                    place - self._data.site_xpos[self._site],
                    _AXIS_WEIGHT_M * np.cross(axis, [0.0, 0.0, -1.0]),
                ]
            )
            if np.linalg.norm(error) < 1e-4:
                break
            self._mujoco.mj_jacSite(self._model, self._data, move, turn, self._site)
            jacobian = np.concatenate([move[:, _ARM], _AXIS_WEIGHT_M * turn[:, _ARM]])
            square = jacobian @ jacobian.T + _DAMPING**2 * np.eye(6)
            step = jacobian.T @ np.linalg.solve(square, error)
            step *= min(1.0, _LARGEST_STEP_RAD / max(np.abs(step).max(), 1e-9))
            out[_ARM] = np.clip(out[_ARM] + step, low, high)
        return out

    def _place(self, joints: np.ndarray) -> None:
        self._data.qpos[: len(joints)] = joints
        self._mujoco.mj_kinematics(self._model, self._data)
        self._mujoco.mj_comPos(self._model, self._data)
