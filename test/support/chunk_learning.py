"""Small parts of off-policy learning, and their twins in TorchRL's form."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from tensordict.nn import (
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
)
from torch import nn
from torchrl.modules import IndependentNormal

from torchrl_vla.policies import GaussianVLAWrapper, TinyChunkCritic
from torchrl_vla.schema import ObservationKeys

STATE = ("observation", "state")
STATE_DIM, ACTION_DIM = 3, 2
FLAT_STATE = "state"  # CQLLoss takes no nested keys


class StateEncoder(nn.Module):
    """The state is the features."""

    num_features = STATE_DIM
    in_keys = [STATE]
    frozen = True

    def forward(self, tensordict):
        return tensordict.get(STATE)


class LinearGaussian(GaussianVLAWrapper):
    """A mean that is linear in the state."""

    def __init__(self, chunk_size):
        keys = ObservationKeys(image=None, instruction=None)
        super().__init__(action_dim=ACTION_DIM, chunk_size=chunk_size, keys=keys)
        self.mean = nn.Linear(STATE_DIM, chunk_size * ACTION_DIM)
        self.log_std = nn.Parameter(torch.full((ACTION_DIM,), -0.7))

    def predict_mean_and_log_std(self, tensordict):
        mean = self.mean(tensordict.get(STATE))
        return mean.unflatten(-1, (self.chunk_size, ACTION_DIM)), self.log_std


class _Member(nn.Module):
    """One member of an ensemble, as a module of its own."""

    def __init__(self, critic, member):
        super().__init__()
        self.stages = nn.ParameterList()
        self.kinds = []
        for layer in critic.ensemble.layers:
            if hasattr(layer, "weight"):
                weight, bias = layer.weight[member], layer.bias[member]
                self.stages.append(nn.Parameter(weight.detach().clone()))
                self.stages.append(nn.Parameter(bias.detach().clone()))
                self.kinds.append(
                    "linear"
                    if layer.weight.ndim == 3 and weight.shape[0] > 1
                    else "norm"
                )
            else:
                self.kinds.append("relu")

    def forward(self, state, action):
        x = torch.cat([state, action, torch.ones_like(action[..., :1])], -1)
        stages = iter(self.stages)
        for kind in self.kinds:
            if kind == "relu":
                x = x.relu()
                continue
            weight, bias = next(stages), next(stages)
            if kind == "linear":
                x = x @ weight + bias[0]
            else:
                x = nn.functional.layer_norm(x, x.shape[-1:]) * weight[0] + bias[0]
        return x


def torchrl_critics(critic):
    """Return the members as TorchRL's losses take them, for chunks of one action."""
    return [
        TensorDictModule(
            _Member(critic, member), [FLAT_STATE, "action"], ["state_action_value"]
        )
        for member in range(critic.sizes.members)
    ]


def torchrl_actor(policy):
    """Return the policy as TorchRL's losses take it, for chunks of one action."""

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean = nn.Linear(STATE_DIM, ACTION_DIM)
            self.log_std = nn.Parameter(policy.log_std.detach().clone())
            self.mean.load_state_dict(policy.mean.state_dict())

        def forward(self, state):
            loc = self.mean(state)
            return loc, self.log_std.exp().expand_as(loc)

    return ProbabilisticTensorDictSequential(
        TensorDictModule(Head(), [FLAT_STATE], ["loc", "scale"]),
        ProbabilisticTensorDictModule(
            ["loc", "scale"],
            ["action"],
            distribution_class=IndependentNormal,
            return_log_prob=True,
        ),
    )


def make_critic(chunk_size, config):
    return TinyChunkCritic(
        StateEncoder(), action_dim=ACTION_DIM, chunk_size=chunk_size, config=config
    )


def decisions(n, chunk_size, *, executed=None, terminated=None, truncated=None):
    """Return ``n`` decisions; ``executed`` counts each one's steps."""
    steps = torch.full((n,), chunk_size) if executed is None else executed
    never = torch.zeros(n, dtype=torch.bool)
    terminated = never if terminated is None else terminated
    truncated = never if truncated is None else truncated
    following = TensorDict(
        {
            STATE: torch.randn(n, STATE_DIM),
            "reward": torch.rand(n, 1),
            "executed_steps": steps.unsqueeze(-1),
            "is_executed": torch.arange(chunk_size) < steps.unsqueeze(-1),
            "terminated": terminated.unsqueeze(-1),
            "truncated": truncated.unsqueeze(-1),
            "done": (terminated | truncated).unsqueeze(-1),
        },
        batch_size=[n],
    )
    return TensorDict(
        {
            STATE: torch.randn(n, STATE_DIM),
            "action_chunk": torch.randn(n, chunk_size, ACTION_DIM),
            "next": following,
        },
        batch_size=[n],
    )


def single_actions(data):
    """Return the decisions of one action as TorchRL's transitions."""
    data = data.clone()
    for part in (data, data["next"]):
        part[FLAT_STATE] = part[STATE]
    return data.set("action", data.pop("action_chunk").squeeze(-2))


def check_equal_critic_gradients(ours, theirs):
    """Compare the gradients of our ensemble with those of TorchRL's members."""
    seen = 0
    for layer, _ in enumerate(ours.critic.ensemble.layers):
        for name in ("weight", "bias"):
            key = ("ensemble", "layers", str(layer), name)
            own = ours.critic_params.get(key, None)
            if own is None:  # an activation
                continue
            twin = theirs.qvalue_network_params.get(("module", "stages", str(seen)))
            torch.testing.assert_close(own.grad, twin.grad.reshape(own.shape))
            seen += 1
    assert seen == 10  # weights and biases of three products and two norms
    assert ours.critic_params.get(("ensemble", "layers", "0", "weight")).grad.any()
