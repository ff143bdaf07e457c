"""The last check between a policy and a robot, and the translation behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tensordict import NestedKey, TensorDictBase, unravel_key
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_vla.policies.boundary.embodiment_contract import EmbodimentContract
from torchrl_vla.schema import (
    ACTION_CHUNK_KEY,
    MissingKeyError,
    instruction_texts,
    is_text,
)

#: Maps a checked chunk ``[*B, H, A]`` and its contract to the robot's ``[*B, H', A']``.
ActionTranslator = Callable[[Tensor, EmbodimentContract], Tensor]


class EmbodimentActionTranslator:
    """Translate checked chunks to another robot's actions, and check what comes out.

    How a policy's numbers become a robot's (units, joint order, controller semantics)
    is the host's knowledge: a function. Its input satisfies ``contract``; its output
    must be finite, for as many rows as came in, and satisfy ``out_contract``. The
    function must not write into the chunk it is given.

    Args:
        contract: what the policy emits.
        translate: ``(chunk [*B, H, A], contract) -> actions [*B, H', A']``.
        out_contract: what the robot takes; None = any finite ``[*B, H', A']``.

    Raises:
        TypeError: ``translate`` cannot be called.

    Examples:
        >>> import torch
        >>> radians = EmbodimentContract("arm", 2)
        >>> degrees = EmbodimentContract("arm-degrees", 2)
        >>> translator = EmbodimentActionTranslator(
        ...     radians, lambda chunk, contract: chunk.rad2deg(), degrees
        ... )
        >>> translator(torch.full((1, 2), torch.pi))
        tensor([[180., 180.]])
    """

    def __init__(
        self,
        contract: EmbodimentContract,
        translate: ActionTranslator,
        out_contract: EmbodimentContract | None = None,
    ) -> None:
        if not callable(translate):
            raise TypeError(
                "EmbodimentActionTranslator: expected a function of a chunk and its "
                f"contract at argument 'translate', got {type(translate).__name__}."
            )
        self.contract = contract
        self.translate = translate
        self.out_contract = out_contract

    def __call__(self, chunk: Tensor, embodiment_tag: str | None = None) -> Tensor:
        """Return the robot's actions.

        Raises:
            ActionBoundaryError: the chunk breaks ``contract``, or what ``translate``
                returned breaks ``out_contract`` or is for other rows.
        """
        rows = self.contract.check(chunk, embodiment_tag).shape[:-2]
        actions = self.translate(chunk, self.contract)
        if not isinstance(actions, Tensor) or actions.ndim < 2:
            is_tensor = isinstance(actions, Tensor)
            got = list(actions.shape) if is_tensor else type(actions).__name__
            raise self.contract.refusal(
                "a tensor [*B, H', A'] from the translator", [f"{got}"]
            )
        if actions.shape[:-2] != rows:
            raise self.contract.refusal(
                f"as many rows from the translator as it was given, {list(rows)}",
                [f"{list(actions.shape[:-2])} rows in {list(actions.shape)}"],
            )
        contract = self.out_contract
        if contract is None:
            tag = f"{self.contract.embodiment_tag}, translated"
            contract = EmbodimentContract(tag, max(1, actions.shape[-1]))
        return contract.check(actions)

    def to_dict(self) -> dict[str, Any]:
        """Return both contracts for a run record."""
        out = None if self.out_contract is None else self.out_contract.to_dict()
        return {"contract": self.contract.to_dict(), "out_contract": out}


class ActionBoundary(TensorDictModuleBase):
    """Let a policy's chunk pass only if the embodiment takes it.

    Wraps any policy that writes a chunk, and stands in its place: in an executor, a
    collector, an evaluation. When the chunk is refused, the tensordict stays as it was
    before the policy was asked.

    **Reads** what the policy reads; with ``tag_key`` also the text there, ``[*B]``.
    **Writes** what the policy writes; the chunk is the translator's, if there is one.

    Args:
        policy: writes a chunk float ``[*B, H, A]`` in robot space.
        contract: what the embodiment takes; not needed beside a translator, whose
            own it is.

    Keyword Args:
        translator: makes the robot's actions of the chunk.
        chunk_key: where the policy writes its chunk.
        raw_chunk_key: where the chunk is kept as it was before the translation.
        tag_key: the embodiment tag of each row, as text.

    Raises:
        ValueError: contract and translator disagree, or both are missing.
        MissingKeyError: the policy does not write ``chunk_key``; or no tag is there.
        ActionBoundaryError: the chunk breaks the contract; lists how.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule
        >>> policy = TensorDictModule(
        ...     lambda state: state.expand(4, 2), [("observation", "state")],
        ...     ["action_chunk"],
        ... )
        >>> guarded = ActionBoundary(policy, EmbodimentContract("arm", 2))
        >>> state = torch.tensor([0.0, torch.inf])
        >>> td = TensorDict({"observation": {"state": state}})
        >>> guarded(td)
        Traceback (most recent call last):
        ...
        torchrl_vla.errors.ActionBoundaryError: EmbodimentContract 'arm': ...
        >>> "action_chunk" in td
        False
    """

    def __init__(
        self,
        policy: TensorDictModuleBase,
        contract: EmbodimentContract | None = None,
        *,
        translator: EmbodimentActionTranslator | None = None,
        chunk_key: NestedKey = ACTION_CHUNK_KEY,
        raw_chunk_key: NestedKey | None = None,
        tag_key: NestedKey | None = None,
    ) -> None:
        super().__init__()
        if contract is None and translator is not None:
            contract = translator.contract
        if contract is None or (translator and translator.contract != contract):
            raise ValueError(
                "ActionBoundary: expected a contract, or a translator with the same "
                f"one, got contract={contract!r} and translator={translator!r}."
            )
        self.policy = policy
        self.contract = contract
        self.translator = translator
        self.chunk_key = unravel_key(chunk_key)
        self.raw_chunk_key = raw_chunk_key
        self.tag_key = tag_key
        outputs = [unravel_key(key) for key in policy.out_keys]
        if self.chunk_key not in outputs:
            raise MissingKeyError(
                f"ActionBoundary: expected a policy that writes {self.chunk_key!r}, "
                f"got {type(policy).__name__} with out_keys {outputs}. Name the chunk "
                "with chunk_key=..."
            )
        self.in_keys = [*policy.in_keys, *([] if tag_key is None else [tag_key])]
        self.out_keys = outputs + ([] if raw_chunk_key is None else [raw_chunk_key])
        last = contract if translator is None else translator.out_contract
        self.action_dim = None if last is None else last.action_dim
        self.chunk_size = None if last is None else last.action_horizon
        if translator is None:  # where the contract is silent, the policy says
            self.chunk_size = self.chunk_size or getattr(policy, "chunk_size", None)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Ask the policy, check, translate; write only what passed."""
        answer = self.policy(tensordict.copy())
        chunk = answer.get(self.chunk_key)
        if self.tag_key is not None:
            strangers = set(self._tags(tensordict)) - {self.contract.embodiment_tag}
            if strangers:
                self.contract.check(chunk, ", ".join(sorted(strangers)))
        check = self.contract.check if self.translator is None else self.translator
        answer.set(self.chunk_key, check(chunk))
        if self.raw_chunk_key is not None:
            answer.set(self.raw_chunk_key, chunk)
        return tensordict.update(answer.select(*self.out_keys))

    def _tags(self, tensordict: TensorDictBase) -> list[str]:
        value = tensordict.get(self.tag_key, None)
        if value is None or not is_text(value):
            raise MissingKeyError(
                f"ActionBoundary: expected the embodiment tag as text at "
                f"{self.tag_key!r}, got {value!r}. Write it, or leave tag_key out. No "
                "action was sent."
            )
        return instruction_texts(value)
