"""Drivers with the members of LeRobot's, without LeRobot and without hardware."""

from __future__ import annotations

import numpy as np

JOINTS = ("shoulder_pan.pos", "elbow_flex.pos", "gripper.pos")


class Device:
    """Connects, and remembers what was done to it."""

    is_connected = False

    def __init__(self, *, calibrated=True):
        self.calibrated = calibrated
        self.events = []

    @property
    def action_features(self):
        return dict.fromkeys(JOINTS, float)

    @property
    def is_calibrated(self):
        return self.calibrated

    def connect(self, calibrate=True):
        self.events.append(f"connect {calibrate}")
        self.is_connected = True
        if calibrate:
            self.calibrated = True

    def disconnect(self):
        self.events.append("disconnect")
        self.is_connected = False


class Arm(Device):
    """Joints that go at once to their goal, at most 90; two cameras, one with depth."""

    def __init__(self, **options):
        super().__init__(**options)
        self.position = dict(zip(JOINTS, (1.0, 2.0, 3.0)))
        self.image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
        self.sent = []

    @property
    def observation_features(self):
        cameras = {"front": (4, 6, 3), "front_depth": (4, 6, 1), "wrist": (2, 2, 3)}
        return {**self.action_features, **cameras}

    def get_observation(self):
        wrist = np.full((2, 2, 3), 7, np.uint8)
        depth = np.zeros((4, 6, 1), np.uint16)
        images = {"wrist": wrist, "front_depth": depth, "front": self.image}
        return {**dict(reversed(self.position.items())), **images}

    def send_action(self, action):
        self.sent.append(dict(action))
        self.position = {name: min(value, 90.0) for name, value in action.items()}
        return dict(self.position)


class Leader(Device):
    """A leader arm that can be moved."""

    def __init__(self, **options):
        super().__init__(**options)
        self.pose = {name: 10.0 * (i + 1) for i, name in enumerate(JOINTS)}

    @property
    def feedback_features(self):
        return self.action_features

    def get_action(self):
        return dict(reversed(self.pose.items()))

    def send_feedback(self, feedback):
        self.events.append("feedback")
        self.pose = dict(feedback)

    def enable_torque(self):
        self.events.append("torque on")

    def disable_torque(self):
        self.events.append("torque off")


class Gamepad(Device):
    """A device with other numbers, whose driver takes no ``calibrate``."""

    @property
    def action_features(self):
        return {"delta_x": float, "delta_y": float}

    @property
    def feedback_features(self):
        return {}

    def connect(self):
        self.is_connected = True

    def get_action(self):
        return {"delta_x": 0.5, "delta_y": 0.0}

    def send_feedback(self, feedback):
        raise NotImplementedError
