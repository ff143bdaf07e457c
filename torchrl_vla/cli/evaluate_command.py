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
from torchrl_vla.cli.options import OptionError, open_environment, read_json
from torchrl_vla.recipes.environment_options import (
    DEFAULT_ENVIRONMENT,
    EnvironmentOptions,
)

if TYPE_CHECKING:
    from tensordict.nn import TensorDictModuleBase
    from torchrl.envs import EnvBase


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a trained policy on episodes with recorded seeds."""

    policy: str
    """Policy: a folder that `train` or `finetune` wrote; a LeRobot checkpoint (needs
    the extra `lerobot`), a folder or a repo id `owner/name`; or a function of your own
    as module:function, which returns a policy in robot space. An environment with other
    conventions than the training data is refused."""
    env: OmitArgPrefixes[EnvironmentOptions] = DEFAULT_ENVIRONMENT
    episodes: int = 200
    """Number of episodes, exactly."""
    replan_interval: int | None = None
    """Actions of a chunk to execute before the policy is called again. Left out, the
    whole chunk, or as many as LeRobot executes of it."""
    rename_map: str = "{}"
    """For a LeRobot checkpoint: the environment's cameras to the policy's, as JSON,
    e.g. '{"corner2": "top"}'; null hides one from the policy."""
    empty_cameras: tuple[str, ...] = ()
    """For a LeRobot checkpoint: its cameras that the environment does not have."""
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
    of the ablation. `compare` reads both."""
    video: Path | None = None
    """File that receives a video (.mp4) of the first four episodes. It needs the extra
    `video`, and in MetaWorld --image-size."""

    def run(self) -> None:
        """Evaluate, print the table, and write the files that were asked for."""
        if self.wordings is not None and self.ablate != "reworded-instruction":
            raise OptionError(
                "evaluate: expected --ablate reworded-instruction with --wordings, got "
                f"{self.ablate}. The wordings would have no effect."
            )
        num_envs = min(self.env.num_envs, self.episodes)
        device = None
        if self.device and library.runs_on_device_of_environment(self.policy):
            device = self.device
        env = open_environment(self.env, self.seed, device, num_envs=num_envs)
        executor = library.load_any_executor(
            self.policy,
            env,
            replan_interval=self.replan_interval,
            **self._lerobot_options(),
        )
        env = recipes.prepare_environment(env, executor)
        ablation = None if self.ablate is None else self._ablation(executor, env)
        provenance: dict[str, Any] = {
            "policy": self._policy(executor),
            "command": self._command(),
        }
        recorder = None
        if self.video is not None:
            recorder = library.Recorder(min(4, self.episodes))
        result = self._evaluate(env, executor, provenance, recorder)
        print(result)
        _write(result, self.json)
        if ablation is not None:
            provenance = {**provenance, "ablation": self.ablate}
            ablated = self._evaluate(env, ablation, provenance)
            names = ("policy", str(self.ablate))
            print(f"\n{library.compare(result, ablated, names=names)}")
            _write(ablated, self._ablation_json())
        env.close()
        if recorder is not None and self.video is not None:
            clips = library.cat(recorder.videos)
            rate_hz = env.metadata.control_frequency_hz
            library.write_video(self.video, clips, rate_hz=rate_hz)

    def _evaluate(
        self,
        env: EnvBase,
        executor: TensorDictModuleBase,
        provenance: dict[str, Any],
        recorder: library.Recorder | None = None,
    ) -> library.EvaluationResult:
        library.manual_seed(self.seed)  # policies that sample noise
        return library.evaluate(
            env,
            executor,
            self.episodes,
            seed=self.seed,
            purpose=self.purpose,
            recorder=recorder,
            on_error=self.on_error,
            provenance=provenance,
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

    def _policy(self, executor: TensorDictModuleBase) -> dict[str, str]:
        """Return which policy it is; one of the Hub has no folder of its own."""
        folder = Path(self.policy).expanduser()
        if folder.is_dir():
            digest = library.hash_folder(folder)
        else:
            digest = library.hash_weights(executor)
        return {"source": self.policy, "sha256": digest}

    def _command(self) -> dict[str, Any]:
        """Return the command line, option by option, as JSON holds it."""
        text = json.dumps({"command": "evaluate", **asdict(self)}, default=str)
        return json.loads(text)

    def _ablation_json(self) -> Path | None:
        if self.json is None:
            return None
        return self.json.with_suffix(f".{self.ablate}{self.json.suffix}")

    def _lerobot_options(self) -> dict[str, Any]:
        options = {
            "rename_map": read_json("--rename-map", self.rename_map),
            "empty_cameras": self.empty_cameras,
            "device": self.device,
        }
        return {name: value for name, value in options.items() if value}


def _write(result: library.EvaluationResult, path: Path | None) -> None:
    if path is not None:
        write_text(path, result.to_json())
