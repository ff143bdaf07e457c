"""Executors: from a chunk of actions to one action per control step."""

from torchrl_vla.execution.decisions import select_decisions
from torchrl_vla.execution.multi_action import MultiAction
from torchrl_vla.execution.multi_step import MultiStepActorWrapper

__all__ = ["MultiAction", "MultiStepActorWrapper", "select_decisions"]
