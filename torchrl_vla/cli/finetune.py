"""``torchrl-vla finetune``: improve a cloned policy by reinforcement learning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from torchrl_vla.cli.options import OptionError, open_environment
from torchrl_vla.objectives import Granularity
from torchrl_vla.recipes import (
    ALGORITHMS,
    FinetuneSettings,
    Reward,
    finetune,
    load_checkpoint,
    open_dataset,
    to_stochastic,
)


@dataclass(frozen=True)
class Finetune:
    """Fine-tune a policy by PPO, GRPO or RLOO; run it again to resume."""

    policy: Path
    """Folder that `train` wrote, of a tiny policy with any head."""
    folder: Path
    """Where the log, the evaluations, the resumable state and the policy are written.
    An unfinished training there is gone on with."""
    env: str = "tabletop"
    """Which environment: tabletop or metaworld, or one of its tasks, e.g.
    metaworld/reach."""
    algorithm: Literal["ppo", "grpo", "rloo"] = "ppo"
    """PPO judges by a critic, the others by episodes that began alike."""
    group_size: int | None = None
    """Of grpo and rloo: episodes that begin alike; left out, 8."""
    gamma: float | None = None
    """Of ppo: discount of one control step; left out, 0.99. Lower is more decisive."""
    reward: Reward = "success"
    """What a decision earns: 1 in success, or what the environment pays."""
    iterations: int = 60
    """Of collecting a batch and learning from it."""
    num_envs: int = 256
    """Environments that run side by side."""
    lr: float = 3e-4
    """Learning rate of the policy."""
    lr_decay: bool = False
    """The learning rate falls linearly, so that the policy comes to rest."""
    target_kl: float | None = None
    """The policy takes no step that begins farther than this from the policy that
    collected the batch; left out, it may."""
    epochs: int = 3
    """Passes over each batch."""
    minibatch_size: int = 256
    """Decisions per optimizer step."""
    clip_epsilon: float = 0.2
    """How far an importance ratio may go below 1, and above unless --clip-higher."""
    clip_higher: float | None = None
    """How far a ratio may go above 1."""
    granularity: Granularity = "token"
    """What one ratio is about: a chunk, an action or a token."""
    entropy_coeff: float = 0.0
    """Weight of the entropy bonus (token and gaussian heads)."""
    reference_kl_coeff: float = 0.0
    """Weight of staying near the policy as it was given."""
    demonstrations: str | None = None
    """Dataset to clone beside the reinforcement learning; needs --bc-coeff."""
    bc_coeff: float = 0.0
    """Weight of that."""
    initial_std: float = 0.2
    """Of a regression head, which gets a spread: its standard deviation at first."""
    flow_noise: float = 0.5
    """Of a flow head without noise: scale of the noise on its steps."""
    replan_interval: int | None = None
    """Actions of each chunk to execute; left out, all."""
    image_size: int | None = None
    """Side of the images in pixels: that of the training data."""
    num_workers: int = 0
    """Processes that share the simulators (not the tabletop's)."""
    render_on_demand: bool = False
    """Draw images only where the policy looks: much faster for chunks in simulators
    that are slow to draw. Refused with policies that look back at every step."""
    eval_episodes: int = 200
    """Episodes of each evaluation, all on the same seeds."""
    eval_interval: int = 10
    """Iterations between two evaluations."""
    tensorboard: bool = False
    """Also write event files; needs the extra `tensorboard`."""
    seed: int = 0
    """Of the training; the evaluations' episodes are others."""

    def run(self) -> None:
        """Fine-tune, and print what came of it."""
        policy, space = load_checkpoint(self.policy)
        policy = to_stochastic(
            policy, initial_std=self.initial_std, flow_noise=self.flow_noise
        )
        torch.manual_seed(self.seed)
        env = self._open_env(self.num_envs)
        eval_env = self._open_env(min(self.num_envs, self.eval_episodes))
        space.metadata.check_compatible(env.metadata)
        if self.demonstrations is None:
            demonstrations = None
        else:
            demonstrations = open_dataset(self.demonstrations)
        result = finetune(
            policy,
            space,
            env,
            self.folder,
            self._settings(),
            eval_env=eval_env,
            demonstrations=demonstrations,
            tensorboard=self.tensorboard,
        )
        env.close()
        eval_env.close()
        print(result.comparison)
        print(f"policy in {self.folder / 'policy'}")

    def _open_env(self, num_envs: int) -> Any:
        return open_environment(
            self.env,
            num_envs=num_envs,
            image_size=self.image_size,
            num_workers=self.num_workers,
            render_on_demand=self.render_on_demand,
            seed=self.seed,
        )

    def _settings(self) -> FinetuneSettings:
        options: dict[str, Any] = {}
        if self.group_size is not None:
            if self.algorithm == "ppo":
                raise OptionError(
                    "finetune: expected no --group-size with --algorithm ppo, which "
                    "compares no groups. Use --algorithm grpo or rloo."
                )
            options["group_size"] = self.group_size
        if self.gamma is not None:
            if self.algorithm != "ppo":
                raise OptionError(
                    f"finetune: expected no --gamma with --algorithm {self.algorithm}, "
                    "which compares whole episodes. Use --algorithm ppo."
                )
            options["gamma"] = self.gamma
        clip: Any = self.clip_epsilon
        if self.clip_higher is not None:
            clip = (self.clip_epsilon, self.clip_higher)
        return FinetuneSettings(
            algorithm=ALGORITHMS[self.algorithm](**options),
            iterations=self.iterations,
            replan_interval=self.replan_interval,
            epochs=self.epochs,
            minibatch_size=self.minibatch_size,
            lr=self.lr,
            lr_decay=self.lr_decay,
            target_kl=self.target_kl,
            reward=self.reward,
            clip_epsilon=clip,
            granularity=self.granularity,
            entropy_coeff=self.entropy_coeff,
            reference_kl_coeff=self.reference_kl_coeff,
            bc_coeff=self.bc_coeff,
            eval_episodes=self.eval_episodes,
            eval_interval=self.eval_interval,
            seed=self.seed,
        )
