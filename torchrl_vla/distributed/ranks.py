"""Processes of one training, and what they tell one another."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_vla.errors import SettingsError

_TIMEOUT = timedelta(hours=2)  # others wait while the first rank evaluates

Value = TypeVar("Value")

#: The ranks of the innermost ``joined_ranks``, last.
_joined: list[Ranks] = []


@dataclass(frozen=True)
class Ranks:
    """The processes of one training: how many there are, and which one this is.

    Args:
        rank: of this process, 0 to ``count - 1``.
        count: processes.

    Examples:
        >>> Ranks.current()  # without a process group
        Ranks(rank=0, count=1)
        >>> Ranks.current().total(torch.tensor(3.0))
        tensor(3.)
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def current(cls) -> Ranks:
        """Return those of :func:`joined_ranks`; outside of it, this process alone.

        A process group alone says nothing: TorchRL's distributed collectors make one.
        """
        return _joined[-1] if _joined else cls()

    @property
    def is_first(self) -> bool:
        """True = this process writes, evaluates and shows progress for all."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """True = there is no other process."""
        return self.count == 1

    def total(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over the ranks."""
        if self.is_alone:
            return value
        value = value.detach().clone()
        dist.all_reduce(value)
        return value

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a tensor over the ranks."""
        return value if self.is_alone else self.total(value) / self.count

    def wait(self) -> None:
        """Wait until every rank is here."""
        if not self.is_alone:
            dist.barrier()

    def gather(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the tensordicts of all ranks one after the other, along dimension 0.

        Args:
            tensordict: of the same keys, shapes and dtypes on every rank.
        """
        if self.is_alone:
            return tensordict
        parts: list[TensorDictBase] = [tensordict] * self.count
        dist.all_gather_object(parts, tensordict.cpu())
        return torch.cat([part.to(tensordict.device) for part in parts], 0)

    def collect(self, value: Value) -> list[Value]:
        """Return the value of every rank, in the order of the ranks."""
        if self.is_alone:
            return [value]
        values: list[object] = [None] * self.count
        dist.all_gather_object(values, value)
        return cast("list[Value]", values)

    def agree(self, caller: str, what: str, value: object, remedy: str) -> None:
        """Refuse a value that is not the same on every rank; all of them raise.

        Args:
            caller: opens the error message.
            what: the value is.
            value: of this rank; compared by equality.
            remedy: ends the error message.

        Raises:
            SettingsError: lists the ranks and their values.
        """
        values = self.collect(value)
        if all(other == values[0] for other in values):
            return
        shown = values
        if all(isinstance(other, dict) for other in values):  # what differs, not all
            tables = cast("list[dict[str, object]]", values)
            names = sorted(set().union(*tables))
            shown = [
                {
                    n: t.get(n)
                    for n in names
                    if any(t.get(n) != o.get(n) for o in tables)
                }
                for t in tables
            ]
        listed = ", ".join(f"rank {rank}: {item}" for rank, item in enumerate(shown))
        raise SettingsError(
            f"{caller}: expected the same {what} on all {self.count} ranks, got "
            f"{listed}. {remedy}"
        )

    def check_shared(self, caller: str, folder: Path) -> None:
        """Refuse a folder that is not the same one for every rank; all of them raise.

        Raises:
            SettingsError: the first rank writes a file there that others do not see.
        """
        if self.is_alone:
            return
        probe = folder / f".partial-ranks-{self.collect(uuid.uuid4().hex)[0]}"
        if self.is_first:
            folder.mkdir(parents=True, exist_ok=True)
            probe.touch()
        self.wait()
        blind = [
            rank for rank, sees in enumerate(self.collect(probe.exists())) if not sees
        ]
        if self.is_first:
            probe.unlink()
        if blind:
            raise SettingsError(
                f"{caller}: expected {str(folder)!r} on a disk that all ranks share, "
                f"got ranks {blind} that do not see what rank 0 writes there. Pass a "
                "folder on a network file system."
            )


def rank_seed(seed: int, step: int, ranks: Ranks) -> int:
    """Return the seed of this rank's own random numbers at a step.

    The first rank's is ``seed`` at step 0, and so is that of a process alone at any.

    Examples:
        >>> rank_seed(7, 3, Ranks())
        7
        >>> rank_seed(7, 3, Ranks(0, 2)) == rank_seed(7, 3, Ranks(1, 2))
        False
    """
    if ranks.is_alone or (ranks.is_first and step == 0):
        return seed
    state = np.random.SeedSequence((seed, step, ranks.rank)).generate_state(
        1, np.uint64
    )
    return int(state[0] >> np.uint64(1))


@contextmanager
def joined_ranks(device: str | None = None) -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` started, and leave them at the end.

    Trainings inside share their work. A process group of your own is taken as it is; a
    process that ``torchrun`` did not start stays alone. On GPUs each process uses the
    one of its ``LOCAL_RANK``.

    Args:
        device: that networks run on, ``"cpu"`` or ``"cuda"``; None = the CPU.
    """
    if dist.is_initialized():
        with _current(Ranks(dist.get_rank(), dist.get_world_size())) as ranks:
            yield ranks
        return
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield Ranks()
        return
    uses_cuda = device is not None and torch.device(device).type == "cuda"
    if uses_cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "cpu:gloo,cuda:nccl" if uses_cuda else "gloo"
    dist.init_process_group(backend, timeout=_TIMEOUT)
    try:
        with _current(Ranks(dist.get_rank(), dist.get_world_size())) as ranks:
            yield ranks
    finally:
        dist.destroy_process_group()


@contextmanager
def _current(ranks: Ranks) -> Iterator[Ranks]:
    _joined.append(ranks)
    try:
        yield ranks
    finally:
        _joined.pop()
