"""``torchrl-vla evaluate``: how good is a policy, and how sure are we."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase

from torchrl_vla.cli.options import OptionError, open_environment, read_json
from torchrl_vla.evaluation import (
    AblationName,
    EvaluationResult,
    Recorder,
    compare,
    evaluate,
    hash_folder,
    hash_weights,
    make_ablation,
    write_video,
)
from torchrl_vla.recipes import load_executor, prepare_environment


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a trained policy on episodes with recorded seeds."""

    policy: str
    """Folder that `train` wrote; or a LeRobot checkpoint (needs the extra `lerobot`),
    a folder or a repo id `owner/name`."""
    env: str = "tabletop"
    """Which environment: tabletop, metaworld, pusht or aloha, or one of its tasks, e.g.
    metaworld/reach, aloha/transfer_cube or tabletop/reach-red. One with other
    conventions than the training data raises."""
    tasks: tuple[str, ...] = ()
    """Its tasks, where there are several; empty takes the environment's default."""
    episodes: int = 200
    """How many episodes, exactly."""
    replan_interval: int | None = None
    """Actions to execute before the policy is asked again; left out, the chunk, or as
    many as LeRobot executes of it."""
    rename_map: str = "{}"
    """Of a LeRobot checkpoint: the environment's cameras to the policy's, as JSON, e.g.
    '{"corner2": "top"}'; null hides one from the policy."""
    empty_cameras: tuple[str, ...] = ()
    """Of a LeRobot checkpoint: its cameras that the environment does not have."""
    device: str | None = None
    """Where a LeRobot policy runs; left out, where it was trained, or the CPU."""
    image_size: int | None = None
    """Side of the images in pixels. Left out, MetaWorld has state alone."""
    num_envs: int = 32
    """How many environments run side by side; the result does not depend on it."""
    num_workers: int = 0
    """Processes that share the simulators (not the tabletop's)."""
    render_on_demand: bool = False
    """Draw images only where the policy looks: much faster for chunks in simulators
    that are slow to draw. Refused with policies that look back at every step."""
    seed: int = 0
    """Seed of the episodes. None of them is one of `collect` or `finetune`."""
    control: AblationName | None = None
    """Evaluate once more on the same seeds with this input taken away from the policy,
    and say what it was worth."""
    json: Path | None = None
    """Where to write every episode's record and what is needed to repeat it; with
    --control also a file for that arm, its name before the ending. `compare` reads
    both."""
    video: Path | None = None
    """Where to write a video (.mp4) of the first four episodes; needs the extra
    `video`, and in MetaWorld --image-size."""

    def run(self) -> None:
        """Evaluate, print the table, and write what was asked for."""
        env = open_environment(
            self.env,
            tasks=self.tasks,
            num_envs=min(self.num_envs, self.episodes),
            image_size=self.image_size,
            num_workers=self.num_workers,
            render_on_demand=self.render_on_demand,
            seed=self.seed,
        )
        actor = load_executor(
            self.policy,
            metadata=env.metadata,
            instructions=env.instructions,
            replan_interval=self.replan_interval,
            **self._lerobot_options(),
        )
        env = prepare_environment(env, actor)
        arm = None if self.control is None else self._control_arm(actor, env)
        known = {"policy": self._policy(actor), "command": self._command()}
        recorder = None if self.video is None else Recorder(min(4, self.episodes))
        result = self._measure(env, actor, known, recorder)
        print(result)
        self._write(result, self.json)
        if arm is not None:
            control = self._measure(env, arm, {**known, "ablation": self.control})
            names = ("policy", str(self.control))
            print(f"\n{compare(result, control, names=names)}")
            self._write(control, self._control_json())
        env.close()
        if recorder is not None:
            rate_hz = env.metadata.control_frequency_hz
            write_video(self.video, torch.cat(recorder.videos), rate_hz=rate_hz)

    def _measure(
        self,
        env: EnvBase,
        actor: TensorDictModuleBase,
        known: dict[str, Any],
        recorder: Recorder | None = None,
    ) -> EvaluationResult:
        torch.manual_seed(self.seed)  # policies that sample noise
        return evaluate(
            env,
            actor,
            self.episodes,
            seed=self.seed,
            recorder=recorder,
            provenance=known,
        )

    def _control_arm(
        self, actor: TensorDictModuleBase, env: EnvBase
    ) -> TensorDictModuleBase:
        try:
            return make_ablation(str(self.control), actor, env)
        except ValueError as error:
            raise OptionError(f"--control: {error}") from error

    def _policy(self, actor: TensorDictModuleBase) -> dict[str, str]:
        """Return which policy it is; one of the Hub has no folder of its own."""
        folder = Path(self.policy).expanduser()
        digest = hash_folder(folder) if folder.is_dir() else hash_weights(actor)
        return {"source": self.policy, "sha256": digest}

    def _command(self) -> dict[str, Any]:
        """Return the command line, option by option, as JSON holds it."""
        text = json.dumps({"command": "evaluate", **asdict(self)}, default=str)
        return json.loads(text)

    def _control_json(self) -> Path | None:
        if self.json is None:
            return None
        return self.json.with_suffix(f".{self.control}{self.json.suffix}")

    @staticmethod
    def _write(result: EvaluationResult, path: Path | None) -> None:
        if path is not None:
            path.write_text(result.to_json())

    def _lerobot_options(self) -> dict[str, Any]:
        options = {
            "rename_map": read_json("--rename-map", self.rename_map),
            "empty_cameras": self.empty_cameras,
            "device": self.device,
        }
        return {name: value for name, value in options.items() if value}
