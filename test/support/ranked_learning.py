"""Fine-tuning steps that the tests run on one rank and on two."""

import torch

from torchrl_vla.distributed import Ranks
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.policies import BackboneConfig, TinyTokenVLA
from torchrl_vla.recipes import FinetuneSettings
from torchrl_vla.recipes.finetuning.algorithms import GRPO, PPO
from torchrl_vla.recipes.finetuning.learner import Learner
from torchrl_vla.recipes.finetuning.rollouts import Rollouts, make_decision_env
from torchrl_vla.tokenizers import UniformActionTokenizer

ALGORITHMS = {
    "ppo": (PPO(), {}),
    "ppo of actions": (PPO(), {"granularity": "action", "target_kl": 0.01}),
    "grpo": (GRPO(group_size=2, keep=None), {"granularity": "token"}),
}


def make_env(num_envs):
    return TabletopEnv(num_envs, image_size=16, max_steps=6)


def make_token_policy(env):
    torch.manual_seed(0)
    return TinyTokenVLA(
        action_dim=env.metadata.action_dim,
        chunk_size=2,
        action_tokenizer=UniformActionTokenizer(5, low=-1.0, high=1.0),
        backbone=BackboneConfig(
            cameras=(), state_dim=env.metadata.state_dim, hidden=16
        ),
        instructions=env.instructions,
    )


def make_rollout():
    """Return decisions [4, 3] of the untrained policy."""
    env = make_env(4)
    decision_env = make_decision_env(
        env, None, chunk_size=2, group_size=2, reward="environment"
    )
    rollouts = Rollouts(decision_env, make_token_policy(env), 3)
    torch.manual_seed(3)
    rollout = rollouts.collect(1).clone()
    # The untrained policy earns nothing: plant what there is to learn from.
    rewards = torch.randn(4, 3, 1, generator=torch.Generator().manual_seed(4))
    rollout["next", "reward"] = rewards
    rollout["next", "success"][[0, 3], -1] = True
    return rollout


def learn(rollouts):
    """Learn one iteration from this rank's rows of each rollout; return the results."""
    ranks = Ranks.current()
    results = {}
    for name, (algorithm, options) in ALGORITHMS.items():
        env = make_env(4)
        policy = make_token_policy(env)
        settings = FinetuneSettings(
            algorithm=algorithm, minibatch_size=5, epochs=2, lr=1e-2, **options
        )
        torch.manual_seed(1)
        learner = Learner(policy, None, settings, None, env=env)
        rows = rollouts[name].chunk(ranks.count)[ranks.rank]
        rollout = ranks.gather(rows)
        torch.manual_seed(2)
        numbers = learner.learn(rollout, 2)
        results[name] = (policy.state_dict(), numbers)
    return results
