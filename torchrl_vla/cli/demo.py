"""``torchrl-vla demo``: the whole path, from demonstrations to a judged policy."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from torchrl.envs import EnvBase

from torchrl_vla.cli.options import OptionError
from torchrl_vla.envs import RenderingError
from torchrl_vla.recipes import (
    DEMO_SETTINGS,
    ExpertEnvironmentName,
    FinetuneSettings,
    make_environment,
    run_demo,
)

_FILM_SIZE = 160
_IMAGE_SIZES = {"tabletop": 32}  # in which reinforcement learning takes minutes
_TRAIN_ENVS = 512


@dataclass(frozen=True)
class Demo:
    """Collect demonstrations, clone them, improve the clone, and write a report.

    What is left out takes the values that the documentation quotes.
    """

    env: ExpertEnvironmentName = "tabletop"
    """Which environment."""
    folder: Path = Path("runs/demo")
    """Where everything is written; an earlier demo there is replaced."""
    tasks: tuple[str, ...] = ()
    """The environment's tasks; empty takes its default."""
    demonstrations: int | None = None
    """Successful episodes to collect, over all tasks."""
    steps: int | None = None
    """Optimizer steps of the cloning."""
    iterations: int | None = None
    """Of reinforcement learning after it; 0 = only clone. MetaWorld's demo has none."""
    episodes: int | None = None
    """Episodes of the evaluation after training; the controls get no more."""
    image_size: int | None = None
    """Side of the images in pixels. Left out, MetaWorld runs from state alone."""
    num_workers: int = 0
    """Processes that share the simulators (MetaWorld)."""
    seed: int = 0
    """Seed of demonstrations and training; evaluations use the next one."""

    def run(self) -> None:
        """Run the demo and print each evaluation."""
        settings = replace(DEMO_SETTINGS[self.env], seed=self.seed)
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
        env = self._make_env(min(32, settings.control_episodes))
        train_env = None if settings.improve is None else self._make_env(_TRAIN_ENVS)
        video_env = self._make_film_env(env, settings.clips)
        results = run_demo(
            env, self.folder, settings, train_env=train_env, video_env=video_env
        )
        env.close()
        for name, result in results.items():
            print(f"\n{name}: {result}")
        print(f"\nreport: {self.folder / 'report.html'}")

    def _improve(self, default: FinetuneSettings | None) -> FinetuneSettings | None:
        if not self.iterations:
            return None
        if default is None:
            raise OptionError(
                f"demo: expected no --iterations with --env {self.env}, whose demo "
                f"only clones, got {self.iterations}. Use `torchrl-vla finetune`."
            )
        return replace(default, iterations=self.iterations)

    def _make_env(self, num_envs: int) -> EnvBase:
        return make_environment(
            self.env,
            tasks=self.tasks,
            num_envs=num_envs,
            image_size=self.image_size or _IMAGE_SIZES.get(self.env),
            num_workers=self.num_workers,
            seed=self.seed,
        )

    def _make_film_env(self, env: EnvBase, clips: int) -> EnvBase | None:
        """Return where to clip, or None, and why, on a machine that cannot draw."""
        if self.env == "tabletop":
            return env
        try:
            video_env = make_environment(
                self.env, tasks=self.tasks, num_envs=clips, image_size=_FILM_SIZE
            )
            video_env.reset()
        except RenderingError as error:
            print(f"torchrl-vla: the report has no clips: {error}", file=sys.stderr)
            return None
        return video_env
