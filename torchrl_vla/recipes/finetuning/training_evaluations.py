"""Evaluations of a policy while it is trained."""

from __future__ import annotations

from pathlib import Path

from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase

from torchrl_vla._internal.durable_files import write_text
from torchrl_vla.distributed import Ranks
from torchrl_vla.evaluation import EvaluationResult, evaluate, hash_weights
from torchrl_vla.policies import VLAWrapperBase
from torchrl_vla.recipes.finetuning.finetune_settings import FinetuneSettings


class TrainingEvaluations:
    """Evaluations of a training, each once, in its folder."""

    def __init__(
        self,
        folder: Path,
        policy: VLAWrapperBase,
        executor: TensorDictModuleBase,
        env: EnvBase,
        settings: FinetuneSettings,
        done: int,
    ) -> None:
        self.folder, self.done = folder / "evaluations", done
        self.policy, self.executor, self.env = policy, executor, env
        self.settings = settings

    def run(self, iteration: int) -> EvaluationResult:
        """Return the evaluation after an iteration, which the first rank makes."""
        ranks = Ranks.current()
        first, *_ = ranks.collect(self._run(iteration) if ranks.is_first else None)
        assert first is not None
        return first

    def _run(self, iteration: int) -> EvaluationResult:
        path = self.folder / f"{iteration:05d}.json"
        # Before the first state, the file may be cut off, or of other weights.
        if 0 < self.done >= iteration and path.exists():
            return EvaluationResult.from_json(path)
        digest = hash_weights(self.policy)
        result = evaluate(
            self.env,
            self.executor,
            self.settings.eval_episodes,
            seed=self.settings.seed,
            provenance={"policy": {"sha256": digest, "iteration": iteration}},
            progress=False,
        )
        write_text(path, result.to_json())
        return result
