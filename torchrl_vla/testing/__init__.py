"""Contract checkers: the specification of each kind of component, in code.

The library's own suite runs them over every public component; run them over yours.
"""

from torchrl_vla.testing.environments import check_env
from torchrl_vla.testing.executors import (
    ServedStep,
    check_executor,
    predicted_action,
)
from torchrl_vla.testing.identity import IdentityReport, check_identity
from torchrl_vla.testing.losses import check_loss
from torchrl_vla.testing.policies import check_policy
from torchrl_vla.testing.transforms import check_transform

__all__ = [
    "IdentityReport",
    "ServedStep",
    "check_env",
    "check_executor",
    "check_identity",
    "check_loss",
    "check_policy",
    "check_transform",
    "predicted_action",
]
