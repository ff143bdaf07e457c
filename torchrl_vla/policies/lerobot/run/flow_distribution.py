"""Distribution of the denoising paths of a LeRobot flow policy."""

from __future__ import annotations

from torchrl_vla.policies.denoising.denoising_distribution import DenoisingDistribution
from torchrl_vla.policies.lerobot.run.flow_prefix import FlowPrefix


class LeRobotFlowDistribution(DenoisingDistribution):
    """Chain of Gaussian steps from noise to a chunk, with padded dimensions.

    LeRobot's models move ``D = max_action_dim`` numbers per action, of which the robot
    has the first ``A``. Those are sampled; the padding follows the ODE. The
    log-probability of the ``A`` numbers is exact, and so is its gradient, which also
    flows through the padding. The end of :meth:`flow_from` is what LeRobot's own policy
    makes of the same noise.
    """

    @property
    def _prefix(self) -> FlowPrefix:
        return self._condition
