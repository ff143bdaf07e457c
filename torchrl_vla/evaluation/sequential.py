"""Evaluation and comparison that stop when the answer is clear.

Both functions run episodes in blocks and look at the outcomes in between. The
provenance of what they return says so, and every interval made of it, later and
elsewhere too, is an anytime-valid confidence sequence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase
from tqdm import tqdm

from torchrl_vla._internal.option_names import OnError
from torchrl_vla.evaluation.comparison import Comparison, compare
from torchrl_vla.evaluation.confidence_sequence import rate_confidence_sequence
from torchrl_vla.evaluation.evaluation_run import EvaluationRun
from torchrl_vla.evaluation.provenance import make_provenance
from torchrl_vla.evaluation.result import STOPPING, EvaluationResult
from torchrl_vla.evaluation.success_statistics import check_confidence
from torchrl_vla.rollout import Purpose, check_acting

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Unpack


class EvaluateOptions(TypedDict, total=False):
    """Options of :func:`evaluate` that the functions of this file pass on."""

    seed: int
    purpose: Purpose
    deterministic: bool
    max_steps: int | None
    on_error: OnError
    provenance: Mapping[str, object] | None


def evaluate_until(
    env: EnvBase,
    policy: TensorDictModuleBase,
    max_episodes: int,
    *,
    target: float | None = None,
    width: float | None = None,
    block: int = 32,
    confidence: float = 0.95,
    progress: bool = True,
    **options: Unpack[EvaluateOptions],
) -> EvaluationResult:
    """Evaluate until the success rate is known well enough.

    The episodes are the first ones of :func:`evaluate` with the same options.

    Args:
        env: batched with episode seeds, or unbatched.
        policy: observation to ``action``; a chunk policy inside its executor.
        max_episodes: stop then, clear or not.
        target: stop when the interval is all above or all below this rate.
        width: stop when the interval is no wider than this.
        block: episodes between two looks; a multiple of the environments that run side
            by side wastes none of them.
        confidence: of the interval that is looked at.
        progress: True = show a progress bar.
        options: ``seed``, ``purpose``, ``deterministic``, ``max_steps``, ``on_error``
            and ``provenance`` of :func:`evaluate`.

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
    rule = {"target": target, "width": width, "block": block}
    rule |= {"max_episodes": max_episodes, "confidence": confidence}
    blocks = _Blocks("evaluate_until", env, policy, rule, options)
    with _bar("evaluate_until", max_episodes, block, progress) as bar:
        while True:
            result = blocks.run(block, max_episodes)
            bar.update(len(blocks.so_far) - bar.n)
            bar.set_postfix(success=f"{100 * result.success_rate:.0f} %")
            low, high = rate_confidence_sequence(
                result.successes, len(result), confidence
            )
            is_narrow = width is not None and high - low <= width
            is_clear = target is not None and not low <= target <= high
            if is_narrow or is_clear or len(blocks.so_far) == max_episodes:
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
    progress: bool = True,
    **options: Unpack[EvaluateOptions],
) -> Comparison:
    """Evaluate two policies on the same episodes until one is shown to be better.

    Equally good policies are told apart with probability at most ``1 - confidence``,
    however many blocks there are; very different ones in a block or two. Policies that
    sample get the same noise where they read ``noise_seed``.

    Args:
        env: batched with episode seeds, or unbatched; both policies act in it, one
            after the other.
        policy_a: the first.
        policy_b: the second.
        max_episodes: of each; stop then, clear or not.
        margin: stop too when the interval of the difference lies within ``+-margin``,
            that is when no difference worth having is left. None = do not.
        block: episodes of each between two looks.
        confidence: of the interval that is looked at.
        names: what to call them.
        progress: True = show a progress bar.
        options: ``seed``, ``purpose``, ``deterministic``, ``max_steps``, ``on_error``
            and ``provenance`` of :func:`evaluate`.

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
        >>> still = TensorDictModule(
        ...     lambda seed: torch.zeros(8, 2), ["episode_seed"], ["action"]
        ... )
        >>> comparison = compare_policies(
        ...     env, env.make_expert(), still, 200, block=8, progress=False
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
    rule = {"margin": margin, "block": block}
    rule |= {"max_episodes": max_episodes, "confidence": confidence}
    policies = (policy_a, policy_b)
    both = [_Blocks("compare_policies", env, p, rule, options) for p in policies]
    with _bar("compare_policies", max_episodes, block, progress) as bar:
        while True:
            a, b = (blocks.run(block, max_episodes) for blocks in both)
            done = len(both[0].so_far)
            bar.update(done - bar.n)
            comparison = compare(a, b, names=names, confidence=confidence)
            bar.set_postfix(difference=f"{100 * comparison.difference:+.0f}")
            is_equal = (
                margin is not None and max(map(abs, comparison.interval)) <= margin
            )
            if comparison.is_decided or is_equal or done == max_episodes:
                return comparison


class _Blocks:
    """A policy's episodes so far."""

    def __init__(
        self,
        caller: str,
        env: EnvBase,
        policy: TensorDictModuleBase,
        rule: Mapping[str, float | None],
        options: EvaluateOptions,
    ) -> None:
        check_acting(caller, env, policy)
        on_error = options.get("on_error", "failure")
        self.so_far = EvaluationRun(env, policy, on_error, progress=False)
        self._seed = options.get("seed", 0)
        self._purpose = options.get("purpose", "evaluation")
        self._deterministic = options.get("deterministic", True)
        self._max_steps = options.get("max_steps")
        self._known = {**(options.get("provenance") or {}), STOPPING: dict(rule)}

    def run(self, block: int, max_episodes: int) -> EvaluationResult:
        """Run the next episodes; return all so far."""
        run, first = self.so_far, len(self.so_far)
        run.add(
            min(block, max_episodes - first),
            seed=self._seed,
            purpose=self._purpose,
            first=first,
            deterministic=self._deterministic,
            max_steps=self._max_steps,
        )
        known = make_provenance(
            run.env,
            seed=self._seed,
            purpose=self._purpose,
            deterministic=self._deterministic,
        )
        return run.result({**known, **self._known})


def _bar(caller: str, max_episodes: int, block: int, progress: bool) -> tqdm:
    for name, value in (("max_episodes", max_episodes), ("block", block)):
        if value < 1:
            raise ValueError(f"{caller}: expected {name} >= 1, got {value}.")
    return tqdm(total=max_episodes, desc=caller, unit="ep", disable=not progress)
