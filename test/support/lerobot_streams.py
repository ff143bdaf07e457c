"""One robot's loop around a LeRobot policy, ours and LeRobot's own."""

from __future__ import annotations

from pathlib import Path

import torch
from lerobot_checkpoints import to_lerobot_batch
from tensordict import TensorDict

from torchrl_vla.execution import MultiStepActorWrapper
from torchrl_vla.policies import LeRobotPolicyWrapper
from torchrl_vla.transforms import ObservationHistory


def lerobot_actions(
    folder: Path, observations: list[TensorDict], seed: int
) -> list[torch.Tensor]:
    """LeRobot's own loop over one episode, as ``lerobot-eval`` writes it."""
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    config = PreTrainedConfig.from_pretrained(str(folder))
    policy_class = get_policy_class(config.type)
    policy = policy_class.from_pretrained(str(folder), config=config)
    before, after = make_pre_post_processors(config, pretrained_path=str(folder))
    policy.eval()
    policy.reset()
    torch.manual_seed(seed)
    actions = []
    for td in observations:
        with torch.inference_mode():
            batch = before(to_lerobot_batch(td))
            actions.append(after(policy.select_action(batch)))
    return actions


class Stream:
    """Feeds observations to an executor, carrying what an environment would carry."""

    def __init__(self, policy: LeRobotPolicyWrapper) -> None:
        self.actor = MultiStepActorWrapper(
            policy, replan_interval=policy.n_action_steps
        )
        self.history = ObservationHistory(policy.history_size)
        self.previous: TensorDict | None = None

    def act(self, td: TensorDict) -> torch.Tensor:
        """Return the action ``[B, A]`` for the next observation."""
        td = td.copy()
        if self.previous is None:
            self.history.begin(td)
        else:
            self.history.follow(td, self.previous)
            fresh = self.history.begin(td.copy())
            started = td["is_init"].squeeze(-1)
            for key in ("observation_history", "history_is_pad"):
                td[key][started] = fresh[key][started]
            td["decision_index"] = self.previous["decision_index"]
            plan = self.previous.get(("next", "policy_plan"), None)
            if plan is not None:
                td["policy_plan"] = plan
        self.previous = self.actor(td)
        return self.previous["action"]
