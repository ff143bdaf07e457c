"""Contract checkers: the specification of each kind of component, in code.

The library's own suite runs them over every public component; run them over yours.
"""

from torchrl_vla.testing.distributed_checks import check_distributed
from torchrl_vla.testing.environment_checks import check_env
from torchrl_vla.testing.executor_checks import (
    ServedStep,
    check_executor,
    predicted_action,
)
from torchrl_vla.testing.fake_clock import FakeClock
from torchrl_vla.testing.fake_episode_writer import FakeEpisodeWriter
from torchrl_vla.testing.fake_robot import (
    FakeRobot,
    FakeRobotOptions,
    FakeTeleoperator,
)
from torchrl_vla.testing.log_prob_consistency import (
    LogProbConsistencyReport,
    check_log_prob_consistency,
)
from torchrl_vla.testing.loss_checks import check_loss
from torchrl_vla.testing.policy_checks import check_policy
from torchrl_vla.testing.robot_checks import check_robot
from torchrl_vla.testing.slow_policy import FakePolicyWorker, SlowPolicy
from torchrl_vla.testing.training_step_checks import (
    FirstStepCheck,
    check_training_step,
)
from torchrl_vla.testing.transform_checks import check_transform

__all__ = [
    "FakeClock",
    "FakeEpisodeWriter",
    "FakePolicyWorker",
    "FakeRobot",
    "FakeRobotOptions",
    "FakeTeleoperator",
    "FirstStepCheck",
    "LogProbConsistencyReport",
    "ServedStep",
    "SlowPolicy",
    "check_distributed",
    "check_env",
    "check_executor",
    "check_log_prob_consistency",
    "check_loss",
    "check_policy",
    "check_robot",
    "check_training_step",
    "check_transform",
    "predicted_action",
]
