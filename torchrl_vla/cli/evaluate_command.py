"""``torchrl-vla evaluate``: success rate of a policy, with its interval."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import OmitArgPrefixes

from torchrl_vla import recipes
from torchrl_vla._internal.durable_files import write_text
from torchrl_vla._internal.option_names import AblationName, OnError, Purpose
from torchrl_vla.cli import library
from torchrl_vla.cli.options import (
    OptionError,
    open_environment,
    read_json,
    read_result,
)
from torchrl_vla.envs.known_presets import PRESETS
from torchrl_vla.recipes.environment_options import (
    DEFAULT_ENVIRONMENT,
    EnvironmentOptions,
)
from torchrl_vla.recipes.executor_options import DEFAULT_EXECUTOR, ExecutorOptions

if TYPE_CHECKING:
    from tensordict.nn import TensorDictModuleBase
    from torchrl.envs import EnvBase


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a trained policy on episodes with recorded seeds."""

    policy: str | None = None
    """Policy: a folder that `train` or `finetune` wrote; a LeRobot checkpoint (needs
    the extra `lerobot`), a folder or a repo id `owner/name`; a function of your own as
    module:function, which returns a policy in robot space; that of a server,
    ws://host:port (needs the extra `serving`); `random`, actions drawn between their
    bounds; or `scripted`, the environment's expert, where it has one. An environment
    with other conventions than the training data is refused."""
    env: OmitArgPrefixes[EnvironmentOptions] = DEFAULT_ENVIRONMENT
    episodes: int = 200
    """Number of episodes, exactly."""
    replan_interval: int | None = None
    """Actions of a chunk to execute before the policy is called again. Left out, the
    whole chunk, or as many as LeRobot executes of it."""
    execution: OmitArgPrefixes[ExecutorOptions] = DEFAULT_EXECUTOR
    rename_map: str = "{}"
    """For a LeRobot checkpoint: the environment's cameras to the policy's, as JSON,
    e.g. '{"corner2": "top"}'; null hides one from the policy."""
    empty_cameras: tuple[str, ...] = ()
    """For a LeRobot checkpoint: its cameras that the environment does not have."""
    convert: bool = False
    """Convert between the conventions of the training and of the environment where they
    differ, and list what is converted; a difference without a conversion is refused."""
    device: str | None = None
    """Device of the policy, e.g. `cuda`. Left out, the CPU, or where a LeRobot policy
    was trained."""
    seed: int = 0
    """Number of the run, from which the seeds of its episodes follow."""
    purpose: Purpose = "evaluation"
    """Purpose of the episodes. None of `evaluation` is one of `collect` or `finetune`;
    `demonstrations` and `training` run those of them that have the same seed."""
    on_error: OnError = "failure"
    """Outcome of an episode that ends in an error: it counts as a failure, is listed
    apart from the rate, or is raised and ends the evaluation."""
    ablate: AblationName | None = None
    """Evaluate once more on the same seeds with this input taken away from the policy,
    or with the instruction in other words (--wordings), and compare."""
    wordings: Path | None = None
    """JSON file of wordings, {"instruction": ["wording", ...]}, for `--ablate
    reworded-instruction`: each episode's instruction in other words."""
    json: Path | None = None
    """File that receives every episode's record and what is needed to repeat it. With
    --ablate a second file, with the ablation's name before the ending, receives that
    of the ablation. `compare` reads both. Until all are finished, episodes are kept in
    a file beside it (.episodes.jsonl): after a kill or Ctrl-C the same command goes on
    there."""
    shard: str | None = None
    """Part of the episodes, such as 3/8 for the third of eight processes. Each needs
    a --json of its own, and --merge joins them."""
    merge: tuple[Path, ...] = ()
    """Files of all shards of one evaluation. Nothing is run: --json receives the result
    of the whole."""
    video: Path | None = None
    """File that receives a video (.mp4) of the first four episodes, one after the
    other. It needs the extra `video`, and in MetaWorld --image-size."""
    video_grid: Path | None = None
    """File that receives a video (.mp4) of episodes side by side, green where they
    succeed and red where they fail: of the first nine, or of --video-episodes."""
    video_episodes: tuple[int, ...] = ()
    """Numbers of the episodes in both videos, from 0."""

    def run(self) -> None:
        """Evaluate, print the table, and write the files that were asked for."""
        if self.wordings is not None and self.ablate != "reworded-instruction":
            raise OptionError(
                "evaluate: expected --ablate reworded-instruction with --wordings, got "
                f"{self.ablate}. The wordings would have no effect."
            )
        if self.merge:
            result = self._merged()
            print(result)
            _write(result, self.json)
            return
        if self.policy is None:
            raise OptionError(
                "--policy: expected a policy, got none. Name a checkpoint; only "
                "--merge needs none."
            )
        self.execution.check()
        num_envs = min(self.env.num_envs, self.episodes)
        device = None
        if self.device and library.runs_on_device_of_environment(self.policy):
            device = self.device
        env = open_environment(self.env, self.seed, device, num_envs=num_envs)
        replan_interval = self.replan_interval
        is_plain = self.execution.executor == "chunks"
        is_plain &= not library.is_builtin_policy(self.policy)
        if self.env.preset is not None and replan_interval is None and is_plain:
            replan_interval = PRESETS[self.env.preset].replan_interval
        executor = library.load_any_executor(
            self.policy,
            env,
            replan_interval=replan_interval,
            execution=self.execution,
            **self._policy_options(),
        )
        if self.convert:
            print(library.describe_conversion(executor))
        env = recipes.prepare_environment(env, executor)
        ablation = None if self.ablate is None else self._ablation(executor, env)
        provenance: dict[str, Any] = {
            "policy": self._policy(self.policy, executor),
            "command": self._command(),
        }
        recorder = self._recorder()
        result = self._evaluate(env, executor, provenance, self.json, recorder)
        print(result)
        _write(result, self.json)
        if ablation is not None:
            provenance = {**provenance, "ablation": self.ablate}
            path = self._ablation_json()
            ablated = self._evaluate(env, ablation, provenance, path)
            names = ("policy", str(self.ablate))
            print(f"\n{library.compare(result, ablated, names=names)}")
            _write(ablated, path)
        env.close()
        if recorder is not None:
            self._write_videos(recorder, result, env.metadata.control_frequency_hz)

    def _merged(self) -> library.EvaluationResult:
        if self.policy is not None:
            raise OptionError(
                f"--merge: expected no --policy beside it, got {self.policy!r}. "
                "Merging runs nothing."
            )
        return library.merge_shards([read_result("evaluate", p) for p in self.merge])

    def _recorder(self) -> library.Recorder | None:
        if self.video is None and self.video_grid is None:
            return None
        wanted = self.video_episodes
        count = 4 if self.video_grid is None else 9
        wanted = wanted or tuple(range(min(count, self.episodes)))
        if self.shard is not None:
            run = library.Shard.parse(self.shard).indices(self.episodes)
            wanted = tuple(index for index in wanted if index in run)
        if not wanted or not set(wanted) <= set(range(self.episodes)):
            raise OptionError(
                f"--video-episodes: expected numbers below {self.episodes}, of "
                f"episodes that are run, got {list(self.video_episodes)}."
            )
        return library.Recorder(wanted)

    def _write_videos(
        self,
        recorder: library.Recorder,
        result: library.EvaluationResult,
        rate_hz: float,
    ) -> None:
        if self.video is not None:
            clips = library.cat(recorder.videos)
            library.write_video(self.video, clips, rate_hz=rate_hz)
        if self.video_grid is not None:
            seeds = library.episode_seeds(self.seed, self.episodes, self.purpose)
            won = {e.seed for e in result.episodes if e.success}
            successes = [seeds[index] in won for index in recorder.indices]
            grid = library.video_grid(recorder.videos, successes)
            library.write_video(self.video_grid, grid, rate_hz=rate_hz)

    def _evaluate(
        self,
        env: EnvBase,
        executor: TensorDictModuleBase,
        provenance: dict[str, Any],
        path: Path | None,
        recorder: library.Recorder | None = None,
    ) -> library.EvaluationResult:
        library.manual_seed(self.seed)  # policies that sample noise
        shard = None if self.shard is None else library.Shard.parse(self.shard)
        return library.evaluate(
            env,
            executor,
            self.episodes,
            seed=self.seed,
            purpose=self.purpose,
            recorder=recorder,
            on_error=self.on_error,
            provenance=provenance,
            shard=None if shard is None else (shard.number, shard.count),
            journal=None if path is None else _journal(path),
        )

    def _ablation(
        self, executor: TensorDictModuleBase, env: EnvBase
    ) -> TensorDictModuleBase:
        try:
            wordings = None
            if self.wordings is not None:
                wordings = library.Wordings.from_json(self.wordings)
            return library.make_ablation(str(self.ablate), executor, env, wordings)
        except ValueError as error:
            raise OptionError(f"--ablate: {error}") from error

    def _policy(self, source: str, executor: TensorDictModuleBase) -> dict[str, str]:
        """Return which policy it is; one of the Hub has no folder of its own."""
        return {"source": source, "sha256": library.policy_digest(source, executor)}

    def _command(self) -> dict[str, Any]:
        """Return the command line, option by option, as JSON holds it."""
        text = json.dumps({"command": "evaluate", **asdict(self)}, default=str)
        return json.loads(text)

    def _ablation_json(self) -> Path | None:
        if self.json is None:
            return None
        return self.json.with_suffix(f".{self.ablate}{self.json.suffix}")

    def _policy_options(self) -> dict[str, Any]:
        renamed = read_json("--rename-map", self.rename_map)
        empty = self.empty_cameras
        is_builtin = self.policy is not None and library.is_builtin_policy(self.policy)
        if self.env.preset is not None and not is_builtin:
            preset = PRESETS[self.env.preset]
            renamed = {**preset.rename_map, **renamed}
            empty = empty or preset.empty_cameras
        options = {
            "convert": self.convert,
            "rename_map": renamed,
            "empty_cameras": empty,
            "device": self.device,
        }
        return {name: value for name, value in options.items() if value}


def _write(result: library.EvaluationResult, path: Path | None) -> None:
    if path is not None:
        write_text(path, result.to_json())
        _journal(path).unlink(missing_ok=True)


def _journal(path: Path) -> Path:
    """Return the file of the finished episodes of a result that is not written yet."""
    return path.with_suffix(".episodes.jsonl")
