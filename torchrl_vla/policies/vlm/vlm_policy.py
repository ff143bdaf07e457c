"""Base class of policies on a vision-language trunk."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from tensordict.nn import TensorDictModuleBase
from typing_extensions import Self

from torchrl_vla.policies.vla_policy import VLAWrapperBase
from torchrl_vla.policies.vlm.compiled_network import compile_network
from torchrl_vla.policies.vlm.trunk import VLATrunk
from torchrl_vla.policies.vlm.trunk_critic import VLMCritic
from torchrl_vla.policies.vlm.vlm_folder import read_vlm_policy, write_vlm_policy
from torchrl_vla.schema import InstructionTable


class VLMPolicy(VLAWrapperBase):
    """Give a head class a vision-language trunk.

    Abstract: stands before the head's base class, as ``TinyPolicy`` does. The
    constructor of a subclass takes the trunk as its first argument, calls the head's
    constructor with ``keys=trunk.keys``, and sets ``self.trunk``; its other arguments
    are in :attr:`config`, from which a folder is read back.
    """

    needs_model_space: ClassVar[bool] = True
    trunk: VLATrunk
    #: Weights that no loss of the policy reaches, with the reasons.
    without_gradient = {
        "trunk.*lm_head.*": "a head with rows of its own asks for no words",
        "trunk.*.vision_*.head.*": "pools an image to a vector, which is not read",
    }

    @property
    def instructions(self) -> InstructionTable | None:
        """The table that gives instruction ids their texts.

        A loss copies its policy: set the table before building the loss.
        """
        return self.trunk.instructions

    @instructions.setter
    def instructions(self, table: InstructionTable | None) -> None:
        self.trunk.instructions = table

    @property
    def config(self) -> dict[str, object]:
        """The constructor's arguments without the trunk."""
        return {"action_dim": self.action_dim, "chunk_size": self.chunk_size}

    def compile_networks(self, **options: Any) -> None:
        """Compile what predicts chunks, in place; falls back with a warning.

        Numbers agree to rounding: recompute log-probabilities before learning.

        Args:
            **options: of ``torch.compile``.
        """
        compile_network(self.trunk.decoder, **options)

    def make_critic(self) -> TensorDictModuleBase:
        """Return a critic on this trunk, which its gradient does not reach."""
        return VLMCritic(self.trunk)

    def check_writable(self) -> None:
        """Accept it: the trunk has its own files, the head is built by its class."""

    def to_folder(self, folder: str | Path) -> None:
        """Write the policy; weights as safetensors, the trunk as ``transformers`` does.

        Raises:
            SchemaError: an argument of the policy can't be written as JSON.
        """
        write_vlm_policy(folder, self)

    @classmethod
    def from_folder(cls, folder: str | Path) -> Self:
        """Read a policy of this class, on the CPU, that :meth:`to_folder` wrote.

        Raises:
            FileNotFoundError: the folder holds no complete policy.
            SchemaError: it holds a policy of another class, or its weights do not fit.
        """
        return read_vlm_policy(folder, cls)
