"""The plugin's policy: every action of a chunk is a linear map of the state."""

from __future__ import annotations

import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor, nn

from lerobot_policy_linear.configuration_linear import LinearConfig


class LinearPolicy(PreTrainedPolicy):
    config_class = LinearConfig
    name = "linear"

    def __init__(self, config: LinearConfig, **kwargs) -> None:
        super().__init__(config)
        size = config.input_features["observation.state"].shape[0]
        self.layer = nn.Linear(size, config.action_feature.shape[0])

    def get_optim_params(self):
        return self.parameters()

    def reset(self) -> None:
        pass

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict]:
        chunk = self.predict_action_chunk.__wrapped__(self, batch)
        return (chunk - batch["action"]).square().mean(), {}

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Tensor]) -> Tensor:
        action = self.layer(batch["observation.state"])
        return action[:, None].expand(-1, self.config.chunk_size, -1)

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor]) -> Tensor:
        return self.predict_action_chunk(batch)[:, 0]
