"""Evaluate until the answer is clear, and not an episode longer.

Both functions run episodes in blocks and look between them. What they return says in
its provenance that its own outcomes stopped it, so that every interval made of it,
later and elsewhere too, is one that survives the peeking.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase
from tqdm import tqdm

from torchrl_vla.evaluation.comparison import Comparison, compare
from torchrl_vla.evaluation.confidence_sequence import rate_confidence_sequence
from torchrl_vla.evaluation.evaluate import evaluate
from torchrl_vla.evaluation.result import STOPPING, EpisodeRecord, EvaluationResult
from torchrl_vla.evaluation.success_statistics import check_confidence


def evaluate_until(
    env: EnvBase,
    policy: TensorDictModuleBase,
    max_episodes: int,
    *,
    target: float | None = None,
    width: float | None = None,
    block: int = 32,
    confidence: float = 0.95,
    seed: int = 0,
    deterministic: bool = True,
    provenance: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> EvaluationResult:
    """Evaluate until the success rate is known well enough.

    Args:
        env: see :func:`evaluate`.
        policy: see :func:`evaluate`.
        max_episodes: stop then, clear or not.
        target: stop when the interval is all above or all below this rate.
        width: stop when the interval is no wider than this.
        block: episodes between two looks; a multiple of the environments that run side
            by side wastes none of them.
        confidence: of the interval that is looked at.
        seed: of the run; its first episodes are those of :func:`evaluate`.
        deterministic: True = the policy's mode, False = it samples.
        provenance: goes into the result.
        progress: True = show a progress bar.

    Raises:
        ValueError: neither target nor width, a number that is none, or no episodes.
        MissingKeyError: see :func:`evaluate`.

    Examples:
        >>> from torchrl_vla.envs import TabletopEnv
        >>> env = TabletopEnv(8, image_size=16)
        >>> result = evaluate_until(
        ...     env, env.make_expert(), 200, target=0.5, block=8, progress=False
        ... )
        >>> len(result), result.success_rate, result.interval[0] > 0.5
        (8, 1.0, True)
    """
    check_confidence("evaluate_until", confidence)
    if target is None and width is None:
        raise ValueError(
            "evaluate_until: expected a target or a width, got neither. For a fixed "
            "number of episodes use evaluate."
        )
    for name, value in (("target", target), ("width", width)):
        if value is not None and not 0.0 < value < 1.0:
            raise ValueError(
                f"evaluate_until: expected {name} in (0, 1), got {value}. Rates are "
                "shares of 1."
            )
    rule: dict[str, Any] = {"target": target, "width": width, "block": block}
    rule |= {"max_episodes": max_episodes, "confidence": confidence}
    arm = _Arm(env, policy, seed, deterministic, {**(provenance or {}), STOPPING: rule})
    with _bar("evaluate_until", max_episodes, block, progress) as bar:
        while True:
            result = arm.run(block, max_episodes)
            bar.update(len(result) - bar.n)
            bar.set_postfix(success=f"{100 * result.success_rate:.0f} %")
            low, high = rate_confidence_sequence(
                result.successes, len(result), confidence
            )
            is_narrow = width is not None and high - low <= width
            is_clear = target is not None and not low <= target <= high
            if is_narrow or is_clear or len(result) == max_episodes:
                return result


def compare_policies(
    env: EnvBase,
    policy_a: TensorDictModuleBase,
    policy_b: TensorDictModuleBase,
    max_episodes: int,
    *,
    margin: float | None = None,
    block: int = 32,
    confidence: float = 0.95,
    names: tuple[str, str] = ("a", "b"),
    seed: int = 0,
    deterministic: bool = True,
    provenance: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Comparison:
    """Run two policies from the same initial states until one is shown to be better.

    Equally good policies are told apart with probability at most ``1 - confidence``,
    however many blocks there are; very different ones in a block or two.

    Args:
        env: see :func:`evaluate`; both policies act in it, one after the other.
        policy_a: the first.
        policy_b: the second.
        max_episodes: of each; stop then, clear or not.
        margin: stop too when the interval of the difference lies within ``+-margin``,
            that is when no difference worth having is left. None = do not.
        block: episodes of each between two looks.
        confidence: of the interval that is looked at.
        names: what to call them.
        seed: of the run.
        deterministic: True = the policies' modes, False = they sample.
        provenance: goes into both results.
        progress: True = show a progress bar.

    Returns:
        The comparison; its ``a`` and ``b`` hold the episodes.

    Raises:
        ValueError: a margin outside of (0, 1), or no episodes.
        ComparisonError: the initial states were not the same.
        MissingKeyError: see :func:`evaluate`.

    Examples:
        >>> import torch
        >>> from tensordict.nn import TensorDictModule
        >>> from torchrl_vla.envs import TabletopEnv
        >>> env = TabletopEnv(8, image_size=16)
        >>> lazy = TensorDictModule(
        ...     lambda seed: torch.zeros(8, 2), ["episode_seed"], ["action"]
        ... )
        >>> comparison = compare_policies(
        ...     env, env.make_expert(), lazy, 200, block=8, progress=False
        ... )
        >>> len(comparison.a), comparison.is_decided
        (8, True)
    """
    check_confidence("compare_policies", confidence)
    if margin is not None and not 0.0 < margin < 1.0:
        raise ValueError(
            f"compare_policies: expected margin in (0, 1), got {margin}. It is a "
            "difference of rates: 0.05 is five points."
        )
    rule: dict[str, Any] = {"margin": margin, "block": block}
    rule |= {"max_episodes": max_episodes, "confidence": confidence}
    known = {**(provenance or {}), STOPPING: rule}
    arms = [
        _Arm(env, policy, seed, deterministic, known) for policy in (policy_a, policy_b)
    ]
    with _bar("compare_policies", max_episodes, block, progress) as bar:
        while True:
            a, b = (arm.run(block, max_episodes) for arm in arms)
            bar.update(len(a) - bar.n)
            comparison = compare(a, b, names=names, confidence=confidence)
            bar.set_postfix(difference=f"{100 * comparison.difference:+.0f}")
            is_equal = (
                margin is not None and max(map(abs, comparison.interval)) <= margin
            )
            if comparison.is_decided or is_equal or len(a) == max_episodes:
                return comparison


class _Arm:
    """A policy's episodes so far."""

    def __init__(
        self,
        env: EnvBase,
        policy: TensorDictModuleBase,
        seed: int,
        deterministic: bool,
        provenance: Mapping[str, Any],
    ) -> None:
        self.env, self.policy = env, policy
        self.seed, self.deterministic = seed, deterministic
        self.provenance = provenance
        self.episodes: list[EpisodeRecord] = []

    def run(self, block: int, max_episodes: int) -> EvaluationResult:
        """Run the next episodes; return all so far."""
        first = len(self.episodes)
        result = evaluate(
            self.env,
            self.policy,
            min(block, max_episodes - first),
            seed=self.seed,
            first=first,
            deterministic=self.deterministic,
            provenance=self.provenance,
            progress=False,
        )
        self.episodes += result.episodes
        return EvaluationResult(self.episodes, result.provenance)


def _bar(caller: str, max_episodes: int, block: int, progress: bool) -> tqdm:
    for name, value in (("max_episodes", max_episodes), ("block", block)):
        if value < 1:
            raise ValueError(f"{caller}: expected {name} >= 1, got {value}.")
    return tqdm(total=max_episodes, desc=caller, unit="ep", disable=not progress)
