"""Contract checkers: the specification of each kind of component, in code.

The library's own suite runs them over every public component; run them over yours.
"""

from torchrl_vla.testing.losses import check_loss
from torchrl_vla.testing.policies import check_policy

__all__ = ["check_loss", "check_policy"]
