"""Provider of actions: a policy behind a checked boundary."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeAlias

import torch
from tensordict import TensorDictBase, unravel_key
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from typing_extensions import Self

from torchrl_vla.errors import ActionProviderError, VLAError
from torchrl_vla.execution import EmbodimentActionTranslator
from torchrl_vla.recipes.provider.action_request import ActionRequest
from torchrl_vla.recipes.provider.action_result import ActionResult, summarize_actions
from torchrl_vla.recipes.provider.policy_loading import (
    PolicyLoader,
    check_policy_type,
    load_robot_policy,
    prepare,
)
from torchrl_vla.recipes.provider.provider_events import EventSink, reported
from torchrl_vla.schema import ACTION_CHUNK_KEY, ACTION_KEY, check_positive_int

#: Costs ``[N]`` of candidates ``[N, H', A']`` in an observation; the lowest is chosen.
CandidateScorer: TypeAlias = Callable[[Tensor, TensorDictBase], Tensor]


class ActionProvider:
    """Answer requests with actions that were checked, translated and traced.

    The provider checks a request before the policy is called, and the policy's actions
    by the translator's contract; the translator, which the host writes, makes the
    robot's actions of them. It never drives a robot: the host owns the translation,
    the safety and the hardware. Failures of loading and of the policy are one error
    class with their cause.

    Args:
        policy: of robot space; writes a chunk ``[*B, H, A]``, or single actions. It is
            moved to ``device``, frozen and set to evaluation on first use.
        translator: from the policy's actions to the robot's; required.

    Keyword Args:
        device: where the policy runs.
        num_candidates: chunks to draw per request, of a policy that samples.
        scorer: chooses among them; required where there are several.
        sink: receives a :class:`ProviderEvent` where loading or a request starts,
            succeeds or fails.

    Raises:
        ActionProviderError: there is no translator, or candidates without a scorer.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule
        >>> from torchrl_vla.execution import EmbodimentContract
        >>> policy = TensorDictModule(
        ...     lambda s: s.expand(4, 2), ["state"], ["action_chunk"]
        ... )
        >>> translator = EmbodimentActionTranslator(
        ...     EmbodimentContract("arm", 2), lambda chunk, contract: chunk.rad2deg()
        ... )
        >>> provider = ActionProvider(policy, translator)
        >>> request = ActionRequest(TensorDict(state=torch.full((2,), torch.pi)), "arm")
        >>> result = provider.select_actions(request)
        >>> result.actions[0], result.loader_mode
        (tensor([180., 180.]), 'policy')
    """

    def __init__(
        self,
        policy: TensorDictModuleBase,
        translator: EmbodimentActionTranslator,
        *,
        device: str = "cpu",
        num_candidates: int = 1,
        scorer: CandidateScorer | None = None,
        sink: EventSink | None = None,
    ) -> None:
        if not isinstance(translator, EmbodimentActionTranslator):
            raise ActionProviderError(
                "ActionProvider: expected an EmbodimentActionTranslator at argument "
                f"'translator', got {type(translator).__name__}. A policy's numbers "
                "are no robot's: write EmbodimentActionTranslator(contract, function)."
            )
        check_positive_int("ActionProvider", "num_candidates", num_candidates)
        if (num_candidates > 1) != (scorer is not None):
            raise ActionProviderError(
                "ActionProvider: expected a scorer for several candidates and for no "
                f"others, got num_candidates={num_candidates} and scorer={scorer!r}."
            )
        self.translator = translator
        self.device = device
        self.num_candidates = num_candidates
        self.scorer = scorer
        self.sink = sink
        self.loader_mode = "policy"
        self.source = type(policy).__name__
        self._load: PolicyLoader = lambda: policy
        self._policy: TensorDictModuleBase | None = None

    @classmethod
    def from_loader(
        cls, loader: PolicyLoader, translator: EmbodimentActionTranslator, **options
    ) -> Self:
        """Load the policy by the host's function, on first use.

        Args:
            loader: returns a policy of robot space.
            translator: see the class.
            options: of the class.
        """
        provider = cls(None, translator, **options)  # type: ignore[arg-type]
        provider.loader_mode, provider._load = "policy_loader", loader
        provider.source = declared_name(loader)
        return provider

    @classmethod
    def from_pretrained(
        cls,
        source: Path | str,
        translator: EmbodimentActionTranslator,
        *,
        policy_type: str | None = None,
        **options,
    ) -> Self:
        """Load a checkpoint, or the policy of a user's function, on first use.

        Args:
            source: a folder of ours or LeRobot's, a repo id, or ``"module:function"``.
            translator: see the class.

        Keyword Args:
            policy_type: of LeRobot's that the checkpoint must have; None = any.
            options: of the class.

        Raises:
            ActionProviderError: the type is not supported.
        """
        if policy_type is not None:
            check_policy_type(policy_type)
        provider = cls(None, translator, **options)  # type: ignore[arg-type]
        provider.loader_mode = "from_pretrained" if policy_type is None else "typed"
        provider._load = partial(
            load_robot_policy, source, policy_type, provider.device
        )
        provider.source = str(source)
        return provider

    @property
    def policy(self) -> TensorDictModuleBase:
        """The policy, loaded and prepared.

        Raises:
            ActionProviderError: it cannot be loaded; the reason is its cause.
        """
        if self._policy is None:
            try:
                with reported(self.sink, "load"):
                    self._policy = prepare(self._load(), self.device)
            except ActionProviderError:
                raise
            except Exception as error:
                raise ActionProviderError(
                    f"ActionProvider: expected a policy from {self.source!r} "
                    f"({self.loader_mode}), got {type(error).__name__}: {error}"
                ) from error
        return self._policy

    def select_actions(self, request: ActionRequest) -> ActionResult:
        """Return actions for a request.

        Raises:
            ActionProviderError: the observation lacks what the policy reads; the policy
                has no chunks, or not of ``action_horizon`` actions; it cannot be
                loaded, or fails, which is the cause.
            ActionGuardError: the actions break the contract, or are for another robot.
        """
        policy = self.policy
        with reported(self.sink, "select_actions"):
            self._check(policy, request)
            raw, latency_s = self._call(policy, request)
            tag = request.embodiment_tag
            candidates, scores, actions = None, None, self.translator(raw, tag)
            if self.scorer is not None:
                candidates, costs = actions, self.scorer(actions, request.observation)
                self._check_costs(costs)
                scores, actions = tuple(costs.tolist()), actions[int(costs.argmin())]
            return ActionResult(
                actions=actions,
                raw_actions=raw,
                mode=request.mode,
                embodiment_tag=self.translator.contract.embodiment_tag,
                loader_mode=self.loader_mode,
                policy=self.source,
                latency_s=latency_s,
                raw_action_summary=summarize_actions(raw),
                translator_contract=self.translator.to_dict(),
                candidates=candidates,
                scores=scores,
            )

    def _check(self, policy: TensorDictModuleBase, request: ActionRequest) -> None:
        """Refuse a request before the policy is called."""
        observation = request.observation
        missing = [
            key
            for key in map(unravel_key, policy.in_keys)
            if observation.get(key, None) is None
        ]
        if missing:
            raise ActionProviderError(
                f"ActionProvider: expected {missing} in the observation, which "
                f"{type(policy).__name__} reads, got "
                f"{sorted(map(str, observation.keys(True, True)))}."
            )
        if self.num_candidates > 1 and observation.batch_dims:
            raise ActionProviderError(
                "ActionProvider: expected one observation, of batch size [], for "
                f"{self.num_candidates} candidates, got "
                f"{list(observation.batch_size)}."
            )
        written = {unravel_key(key) for key in policy.out_keys}
        needed = {ACTION_CHUNK_KEY}
        if request.mode == "select_action":
            needed = {ACTION_CHUNK_KEY, ACTION_KEY}
        if not needed & written:
            raise ActionProviderError(
                f"ActionProvider: expected a policy that writes {sorted(needed)} "
                f"for mode {request.mode!r}, got {type(policy).__name__} with out_keys "
                f"{policy.out_keys}. A policy of single actions has only "
                "mode='select_action'."
            )

    def _call(
        self, policy: TensorDictModuleBase, request: ActionRequest
    ) -> tuple[Tensor, float]:
        """Return the policy's own actions, and how long they took."""
        inputs = request.observation.copy()
        if self.num_candidates > 1:
            inputs = inputs.expand(self.num_candidates).clone()
        is_chunk = ACTION_CHUNK_KEY in map(unravel_key, policy.out_keys)
        started = time.perf_counter()
        try:
            with torch.no_grad():
                answer = policy(inputs)
                raw = answer[ACTION_CHUNK_KEY if is_chunk else ACTION_KEY]
        except VLAError as error:
            raise ActionProviderError(f"ActionProvider: {error}") from error
        except Exception as error:
            raise ActionProviderError(
                f"ActionProvider: expected {type(policy).__name__} to return actions, "
                f"got {type(error).__name__}: {error}. No action was sent."
            ) from error
        latency_s = time.perf_counter() - started
        if not is_chunk:
            raw = raw.unsqueeze(-2)
        horizon, length = request.action_horizon, raw.shape[-2]
        if horizon is not None and horizon != length:
            raise ActionProviderError(
                f"ActionProvider: expected action_horizon={horizon} actions, got "
                f"{length} of {type(policy).__name__}: nothing is cut or padded. Ask "
                f"for {length}. No action was sent."
            )
        if request.mode == "select_action":
            raw = raw[..., :1, :]
        return raw, latency_s

    def _check_costs(self, costs: Tensor) -> None:
        wanted = (self.num_candidates,)
        if costs.shape != wanted or not costs.isfinite().all():
            raise ActionProviderError(
                f"ActionProvider: expected finite costs {list(wanted)} of the scorer, "
                f"got {costs}. No action was sent."
            )


def declared_name(function: Callable[..., object]) -> str:
    """Return a function's name for a record, or its class's."""
    return getattr(function, "__qualname__", type(function).__name__)
