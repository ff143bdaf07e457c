"""``torchrl-vla train``: clone demonstrations."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from torchrl_vla.cli.options import OptionError, read_json
from torchrl_vla.data import DemonstrationDataset, LeRobotDemonstrations
from torchrl_vla.policies.lerobot import KINDS
from torchrl_vla.recipes import (
    Head,
    TrainingLog,
    fit_lerobot_policy,
    make_policy,
    make_space,
    open_dataset,
    save_checkpoint,
    train_behavior_cloning,
    train_lerobot,
)

_TINY = "tiny"


@dataclass(frozen=True)
class Train:
    """Train a policy on demonstrations: a tiny one of ours, or one of LeRobot's."""

    dataset: str
    """Folder that `collect` wrote, folder of a LeRobot dataset (v2.1 or v3.0; needs the
    extra `datasets`), or its repo id `user/name` on the Hugging Face Hub."""
    folder: Path
    """Where the policy is written; LeRobot loads one of its own from there."""
    policy: str = _TINY
    """`tiny`; a type of LeRobot's (needs the extra `lerobot`): act, diffusion, smolvla,
    multi_task_dit, vqbet, pi0, pi05 or xvla; or a LeRobot checkpoint to go on from, a
    folder or repo id."""
    config: str = "{}"
    """Of a LeRobot policy: fields of its configuration, as JSON, e.g.
    '{"chunk_size": 20, "n_action_steps": 10}'."""
    rename_map: str = "{}"
    """Of a LeRobot checkpoint: the dataset's cameras to the policy's, as JSON, e.g.
    '{"front": "camera1"}'."""
    train_on_padding: bool = False
    """Accept a LeRobot policy whose loss counts the padding past an episode's end."""
    head: Head | None = None
    """Of `tiny`: what it emits: regression, tokens, gaussian, flow or diffusion; left
    out, regression. All can be fine-tuned by `torchrl-vla finetune`."""
    chunk_size: int | None = None
    """Of `tiny`: actions per chunk; left out, 8."""
    hidden: int | None = None
    """Of `tiny`: width; left out, 256."""
    steps: int = 3000
    """Optimizer steps."""
    batch_size: int = 256
    """Frames per step."""
    lr: float | None = None
    """Peak learning rate. Left out, 1e-3 for `tiny`, LeRobot's own for its policies
    (ACT's, 1e-5, is slow)."""
    device: str | None = None
    """Where it is trained, e.g. `cuda`; left out, the CPU, or where the checkpoint
    was."""
    seed: int = 0
    """Seed of the initial weights and the batches."""

    def run(self) -> None:
        """Train and write the policy, its metadata and the learning curve."""
        self._check()
        torch.manual_seed(self.seed)
        dataset = open_dataset(self.dataset)
        train = self._train_tiny if self.policy == _TINY else self._train_lerobot
        log = train(dataset)
        log.to_csv(self.folder / "learning_curve.csv")
        print(f"loss {log.losses[-1][1]:.4f}; policy in {self.folder}")

    def _check(self) -> None:
        """Refuse options of another policy, which would have no effect."""
        is_tiny = self.policy == _TINY
        default = {field.name: field.default for field in fields(self)}
        foreign = ("head", "chunk_size", "hidden")
        hint = "Give sizes as --config, e.g. --config '{\"chunk_size\": 20}'."
        if is_tiny:
            foreign = ("config", "rename_map", "train_on_padding")
            hint = "They are for LeRobot's policies: --policy act."
        elif self.policy in KINDS:
            foreign = (*foreign, "rename_map")
            hint = "A new policy has the dataset's cameras. " + hint
        given = [name for name in foreign if getattr(self, name) != default[name]]
        if given:
            names = ", ".join("--" + name.replace("_", "-") for name in given)
            raise OptionError(
                f"train: expected no {names} with --policy {self.policy}. {hint}"
            )

    def _train_tiny(
        self, dataset: DemonstrationDataset | LeRobotDemonstrations
    ) -> TrainingLog:
        head = self.head or "regression"
        policy = make_policy(
            dataset,
            chunk_size=self.chunk_size or 8,
            head=head,
            hidden=self.hidden or 256,
        ).to(self.device or "cpu")
        space = make_space(dataset.metadata, head)
        lr = 1e-3 if self.lr is None else self.lr
        log = train_behavior_cloning(
            policy, dataset, space=space, **self._budget(), lr=lr
        )
        save_checkpoint(self.folder, policy, space)
        return log

    def _train_lerobot(
        self, dataset: DemonstrationDataset | LeRobotDemonstrations
    ) -> TrainingLog:
        renamed = read_json("--rename-map", self.rename_map)
        policy = fit_lerobot_policy(
            self.policy,
            dataset,
            config=read_json("--config", self.config),
            device=self.device,
            **({"rename_map": renamed} if renamed else {}),
        )
        log = train_lerobot(
            policy,
            dataset,
            **self._budget(),
            lr=self.lr,
            train_on_padding=self.train_on_padding,
        )
        save_checkpoint(self.folder, policy, None, dataset.metadata)
        return log

    def _budget(self) -> dict[str, Any]:
        return {"steps": self.steps, "batch_size": self.batch_size, "seed": self.seed}
