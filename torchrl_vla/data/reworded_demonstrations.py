"""Demonstrations whose instructions are reworded when frames are sampled."""

from __future__ import annotations

from torch import Tensor
from torchrl.envs import Compose, Transform

from torchrl_vla.data.demonstrations import Demonstrations
from torchrl_vla.schema import InstructionTable, Wordings
from torchrl_vla.transforms import InstructionWording


class RewordedDemonstrations(Demonstrations):
    """Sample demonstrations with a random wording of each frame's instruction.

    The frames and the metadata are those of the dataset; its instructions and all
    wordings are in :attr:`instructions`, so that a policy made for it knows them.

    Args:
        dataset: any demonstrations.
        wordings: of every instruction in the dataset. An instruction is kept as it is
            only if it is among its own wordings.

    Raises:
        UnknownInstructionError: an instruction has no wordings.
    """

    def __init__(self, dataset: Demonstrations, wordings: Wordings) -> None:
        wordings.check_covers("reword_demonstrations", dataset.instructions)
        self.dataset, self.wordings = dataset, wordings
        self.frames, self.metadata = dataset.frames, dataset.metadata
        self.storage = dataset.storage
        texts = [*dataset.instructions, *wordings.table]
        self.instructions = InstructionTable(texts)

    def observations(self, history_size: int = 1) -> Transform | None:
        """Make the transform that completes and rewords sampled frames."""
        steps = [self.dataset.observations(history_size)]
        wording = InstructionWording(self.wordings)
        return Compose(*(step for step in steps if step is not None), wording)

    def select_episodes(self, episodes: Tensor) -> RewordedDemonstrations:
        """Return some episodes, reworded as well."""
        return RewordedDemonstrations(
            self.dataset.select_episodes(episodes), self.wordings
        )


def reword_demonstrations(
    dataset: Demonstrations, wordings: Wordings
) -> RewordedDemonstrations:
    """Return demonstrations that give every sampled frame another wording.

    Args:
        dataset: any demonstrations.
        wordings: of every instruction in the dataset.

    Raises:
        UnknownInstructionError: an instruction has no wordings.

    Examples:
        >>> import tempfile
        >>> from torchrl_vla.data import collect
        >>> from torchrl_vla.envs import TabletopEnv
        >>> env = TabletopEnv(4, image_size=16)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     dataset = collect(
        ...         env, env.make_expert(), 4, folder=folder, progress=False
        ...     )
        >>> capitals = {text: [text.upper()] for text in dataset.instructions}
        >>> reworded = reword_demonstrations(dataset, Wordings(capitals))
        >>> ids = reworded.replay_buffer(2).sample()["language_instruction"]
        >>> reworded.instructions.decode(ids)[0].isupper()
        True
    """
    return RewordedDemonstrations(dataset, wordings)
