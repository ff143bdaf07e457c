"""Tables of the robots and teleoperators that have a name; they need no PyTorch."""

from __future__ import annotations

_MAKERS = "torchrl_vla.runtime.fake_makers"
_SO101 = "torchrl_vla.runtime.so101.arm_makers"

#: Maker of each robot, ``"module:function"``, called with the robot's options.
ROBOTS: dict[str, str] = {
    "fake": f"{_MAKERS}:make_fake_robot",
    "so101": f"{_SO101}:make_so101_robot",
}

#: Maker of each teleoperator, likewise, and with ``metadata`` of the robot that it
#: moves, where it declares it.
TELEOPERATORS: dict[str, str] = {
    "fake": f"{_MAKERS}:make_fake_teleoperator",
    "so101": f"{_SO101}:make_so101_teleoperator",
}
