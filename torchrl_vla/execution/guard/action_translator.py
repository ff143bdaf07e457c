"""Translation of checked actions to the actions of another embodiment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from torchrl_vla.execution.guard.embodiment_contract import EmbodimentContract

#: Maps a checked chunk ``[*B, H, A]`` and its contract to the robot's ``[*B, H', A']``.
ActionTranslator = Callable[[Tensor, EmbodimentContract], Tensor]


class EmbodimentActionTranslator:
    """Translate checked chunks to another robot's actions, and check the result.

    The host knows how a policy's numbers become a robot's (units, joint order,
    controller semantics) and passes it as a function. Its input satisfies ``contract``;
    its output must be finite, have the batch dimensions of the input, and satisfy
    ``out_contract``. The function must not write into the chunk it is given.

    Args:
        contract: of the policy's actions.
        translate: ``(chunk [*B, H, A], contract) -> actions [*B, H', A']``.
        out_contract: of the robot's actions; None = any finite ``[*B, H', A']``.

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
        """Check a chunk and return the robot's actions.

        Raises:
            ActionGuardError: the chunk breaks ``contract``, or the translation breaks
                ``out_contract`` or has other batch dimensions.
        """
        return self.translate_checked(self.contract.check(chunk, embodiment_tag))

    def translate_checked(self, chunk: Tensor) -> Tensor:
        """Return the robot's actions for a chunk that satisfies ``contract``.

        Raises:
            ActionGuardError: the translation breaks ``out_contract`` or has other batch
                dimensions.
        """
        batch = chunk.shape[:-2]
        actions = self.translate(chunk, self.contract)
        if not isinstance(actions, Tensor) or actions.ndim < 2:
            is_tensor = isinstance(actions, Tensor)
            got = list(actions.shape) if is_tensor else type(actions).__name__
            raise self.contract.refusal(
                "a tensor [*B, H', A'] from the translator", [f"{got}"]
            )
        if actions.shape[:-2] != batch:
            raise self.contract.refusal(
                f"the batch dimensions that the translator was given, {list(batch)}",
                [f"{list(actions.shape[:-2])} in {list(actions.shape)}"],
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
