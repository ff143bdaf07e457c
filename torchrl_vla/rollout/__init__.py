"""Seeds of episodes by purpose, and the loop that runs episodes."""

from torchrl_vla.rollout.acting_border import (
    check_acting,
    check_device,
    check_environment,
)
from torchrl_vla.rollout.checked_env import CheckedEnv, checked_env
from torchrl_vla.rollout.episodes import EpisodeStep, run_episodes
from torchrl_vla.rollout.evaluation_mode import evaluation_mode
from torchrl_vla.rollout.interrupted_episodes import EpisodeFailure
from torchrl_vla.rollout.random_actions import RandomActions
from torchrl_vla.rollout.random_numbers import (
    hash_numbers,
    noise_seeds,
    normals,
    uniforms,
)
from torchrl_vla.rollout.scheduled_episodes import ScheduledEpisodes
from torchrl_vla.rollout.seeds import (
    Purpose,
    episode_seeds,
    iteration_seed,
    seed_purpose,
)

__all__ = [
    "CheckedEnv",
    "EpisodeFailure",
    "EpisodeStep",
    "Purpose",
    "RandomActions",
    "ScheduledEpisodes",
    "check_acting",
    "check_device",
    "check_environment",
    "checked_env",
    "episode_seeds",
    "evaluation_mode",
    "hash_numbers",
    "iteration_seed",
    "noise_seeds",
    "normals",
    "run_episodes",
    "seed_purpose",
    "uniforms",
]
