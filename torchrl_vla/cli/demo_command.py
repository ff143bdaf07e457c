"""``torchrl-vla demo``: the whole path, from demonstrations to an evaluated policy."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import OmitArgPrefixes

from torchrl_vla import recipes
from torchrl_vla._internal.suggestions import did_you_mean
from torchrl_vla.cli import library
from torchrl_vla.cli.options import OptionError, open_environment
from torchrl_vla.recipes.demo.demo_settings import DEMO_SETTINGS, DemoSettings
from torchrl_vla.recipes.environment_options import (
    DEFAULT_ENVIRONMENT,
    EnvironmentOptions,
)
from torchrl_vla.recipes.finetuning.finetune_settings import FinetuneSettings

if TYPE_CHECKING:
    from torchrl.envs import EnvBase

_CLIP_SIZE = 160
_TRAIN_ENVS = 512


@dataclass(frozen=True)
class Demo:
    """Collect demonstrations, clone them, improve the clone, and write a report.

    Options that are left out take the values that the documentation quotes.
    """

    env: OmitArgPrefixes[EnvironmentOptions] = DEFAULT_ENVIRONMENT
    folder: Path = Path("runs/demo")
    """Folder that receives everything; an earlier demo in it is replaced."""
    demonstrations: int | None = None
    """Successful episodes to collect, over all tasks."""
    steps: int | None = None
    """Optimizer steps of the cloning."""
    iterations: int | None = None
    """Iterations of reinforcement learning after it; 0 = only clone. The demo of
    MetaWorld and that of LIBERO have none."""
    episodes: int | None = None
    """Episodes of the evaluation after training; the ablations get no more."""
    device: str | None = None
    """Device of the policy, e.g. `cuda`, and of the tabletop, which simulates and
    renders there. Left out, the CPU."""
    seed: int = 0
    """Seed of demonstrations, training and evaluations, whose episodes differ."""

    def run(self) -> None:
        """Run the demo and print each evaluation."""
        settings = self._settings()
        options = replace(
            self.env,
            image_size=self.env.image_size or settings.image_size,
            render_on_demand=settings.image_interval > 1,
        )
        num_envs = min(options.num_envs, settings.control_episodes, settings.num_envs)
        env = self._open(options, num_envs)
        train_env = None
        if settings.improve is not None:
            train_env = self._open(options, _TRAIN_ENVS)
        results = recipes.run_demo(
            env,
            self.folder,
            settings,
            train_env=train_env,
            video_env=self._make_video_env(env, settings),
        )
        env.close()
        for name, result in results.items():
            print(f"\n{name}: {result}")
        print(f"\nreport: {self.folder / 'report.html'}")

    def _open(self, options: EnvironmentOptions, num_envs: int) -> EnvBase:
        return open_environment(options, self.seed, self.device, num_envs=num_envs)

    def _settings(self) -> DemoSettings:
        if self.env.name not in DEMO_SETTINGS:
            raise OptionError(
                f"demo: expected --env to be one of {sorted(DEMO_SETTINGS)}, which "
                f"have a demo, got {self.env.name!r}."
                f"{did_you_mean(self.env.name, DEMO_SETTINGS)}"
            )
        settings = replace(DEMO_SETTINGS[self.env.name], seed=self.seed)
        if self.demonstrations is not None:
            settings = replace(settings, demonstrations=self.demonstrations)
        if self.steps is not None:
            settings = replace(settings, steps=self.steps)
        if self.episodes is not None:
            control_episodes = min(settings.control_episodes, self.episodes)
            settings = replace(
                settings, episodes=self.episodes, control_episodes=control_episodes
            )
        if self.iterations is not None:
            settings = replace(settings, improve=self._improve(settings.improve))
        return settings

    def _improve(self, default: FinetuneSettings | None) -> FinetuneSettings | None:
        if not self.iterations:
            return None
        if default is None:
            raise OptionError(
                f"demo: expected no --iterations with --env {self.env.name}, whose "
                f"demo only clones, got {self.iterations}. Use `torchrl-vla finetune`."
            )
        return replace(default, iterations=self.iterations)

    def _make_video_env(self, env: EnvBase, settings: DemoSettings) -> EnvBase | None:
        """Return where to record clips, or None on a machine that cannot render."""
        if settings.image_size is not None:  # the policy reads images of this size
            return env
        options = replace(self.env, image_size=_CLIP_SIZE, num_workers=0)
        try:
            video_env = self._open(options, settings.clips)
            video_env.reset()
        except library.RenderingError as error:
            print(f"torchrl-vla: the report has no clips: {error}", file=sys.stderr)
            return None
        return video_env
