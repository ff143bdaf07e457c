"""Worker processes that each step a group of gymnasium environments."""

from __future__ import annotations

import multiprocessing
import traceback
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium.vector.utils import CloudpickleWrapper

from torchrl_vla.envs.lazy_rendering import Key
from torchrl_vla.envs.shared_observations import Entry, SharedObservations
from torchrl_vla.envs.simulator_interface import SimulatorInterface
from torchrl_vla.envs.simulators import (
    RENDERED,
    Arrays,
    SimulationError,
    SimulatorGroup,
    SimulatorLayout,
)
from torchrl_vla.schema import SUCCESS_KEY, SchemaError, VLAError

_ACTION, _TO_RENDER = "action", "to_render"
_AT_RESET = (RENDERED, SUCCESS_KEY)
_AT_STEP = ("reward", "terminated", "truncated")


class SimulatorProcesses:
    """Step environments in worker processes, each a :class:`SimulatorGroup`.

    Physics scales with the cores while the main process waits. Workers are spawned,
    never forked (threads and graphics contexts do not survive a fork), so a script
    that uses them needs ``if __name__ == "__main__":``. Arrays go through shared
    memory, and what else there is (seeds, instructions, errors) through a pipe.

    Args:
        make_envs: one constructor per environment; pickled by value, so lambdas work.
        interface: of the simulators.
        num_workers: processes; each gets an equal run of environments.
    """

    def __init__(
        self,
        make_envs: Sequence[Callable[[], gymnasium.Env]],
        interface: SimulatorInterface,
        num_workers: int,
    ) -> None:
        count = len(make_envs)
        bounds = [count * worker // num_workers for worker in range(num_workers + 1)]
        self._runs = list(pairwise(bounds))
        self._caller = [w for w, (a, b) in enumerate(self._runs) for _ in range(a, b)]
        self._context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes: list[SpawnProcess] = []
        self._ended: set[int] = set()  # workers
        # Sent, not passed: the worker reports what it cannot unpickle.
        self._jobs = [
            CloudpickleWrapper(
                cast(
                    Any,
                    partial(SimulatorGroup, make_envs[start:stop], interface, start),
                )
            )
            for start, stop in self._runs
        ]
        for worker in range(num_workers):
            self._start(worker)
        self._close = weakref.finalize(self, _stop, self._pipes, self._processes)
        answers = [self._receive(worker) for worker in range(num_workers)]
        self._layouts = [
            layout for answer in _all_or_raise(answers) for layout in answer
        ]
        # Where layouts differ, the environment refuses them before it asks for more.
        self._entries = _entries(self._layouts[0])
        self._images = {
            key for key, (shape, _) in self._entries.items() if len(shape) == 3
        }
        self._shared = SharedObservations(count, self._entries)
        self._page = 0  # that workers write to; the caller may hold the other one
        _all_or_raise([self._share(worker) for worker in range(num_workers)])

    def layouts(self) -> list[SimulatorLayout]:
        """Return the layout of every environment."""
        return self._layouts

    def reset(self, indices: Sequence[int], seeds: Sequence[int]) -> Arrays:
        """Begin the episode of each seed; see :class:`SimulatorGroup`.

        A process that has ended is started again, if all of its environments are reset.

        Note:
            The arrays of :meth:`reset` and :meth:`step` are valid until the second call
            after; then workers write to them again.
        """
        for worker in sorted(self._ended):
            if set(range(*self._runs[worker])) <= set(indices):
                self._restart(worker)
        told = self._call("reset", indices, np.asarray(seeds, dtype=np.int64))
        return {**told, **self._read(indices, _AT_RESET)}

    def step(
        self, indices: Sequence[int], actions: np.ndarray, to_render: np.ndarray
    ) -> Arrays:
        """Execute ``actions[i]`` in ``indices[i]``; see :class:`SimulatorGroup`."""
        page = self._shared.pages[self._page]
        rows = slice(None) if len(indices) == len(self._caller) else indices
        page[_ACTION][rows], page[_TO_RENDER][rows] = actions, to_render
        self._call("step", indices)
        return self._read(indices, (*_AT_RESET, *_AT_STEP))

    def render(self, indices: Sequence[int]) -> Arrays:
        """Render environments now; see :class:`SimulatorGroup`."""
        self._call("render", indices)
        page = self._shared.pages[self._page]
        return {key: page[key][list(indices)] for key in self._images}

    def privileged(self, indices: Sequence[int]) -> Arrays:
        """Return what a scripted expert may know; see :class:`SimulatorGroup`."""
        return self._call("privileged", indices)

    def close(self) -> None:
        """Stop the workers."""
        self._close()

    def _start(self, worker: int) -> None:
        here, there = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(there,), daemon=True)
        process.start()
        there.close()
        if worker < len(self._pipes):
            self._pipes[worker].close()
        # In place: the finalizer holds these lists.
        self._pipes[worker : worker + 1] = [here]
        self._processes[worker : worker + 1] = [process]
        self._ended.discard(worker)
        _all_or_raise([self._send(worker, self._jobs[worker])])

    def _restart(self, worker: int) -> None:
        self._start(worker)
        (layouts,) = _all_or_raise([self._receive(worker)])
        first, stop = self._runs[worker]
        if layouts != self._layouts[first:stop]:
            self._ended.add(worker)
            raise SchemaError(
                f"GymnasiumEnv: expected {self._layouts[first]} of environments "
                f"{first} to {stop - 1} when their process is started again, got "
                f"{layouts[0]}. Let their constructors always make the same simulator."
            )
        _all_or_raise([self._share(worker)])

    def _share(self, worker: int) -> SimulationError | None:
        try:
            self._shared.send(self._pipes[worker], self._processes[worker].pid)
        except OSError:
            return self._has_ended(worker)
        return None

    def _read(self, indices: Sequence[int], answers: Sequence[str]) -> Arrays:
        """Return what the workers wrote, and let them write to the other page next."""
        page = self._shared.pages[self._page]
        self._page = 1 - self._page
        seen = [key for key, _ in self._layouts[0].observation]
        is_whole = len(indices) == len(self._caller)
        if is_whole and (not self._images or page[RENDERED].all()):
            return {key: page[key] for key in (*answers, *seen)}
        found: Arrays = {key: page[key][indices] for key in answers}
        rendered = [indices[i] for i in found[RENDERED].nonzero()[0].tolist()]
        for key in seen:
            rows = rendered if key in self._images else indices
            found[key] = page[key] if rows is indices and is_whole else page[key][rows]
        return found

    def _call(self, name: str, indices: Sequence[int], *values: np.ndarray) -> Arrays:
        share: dict[int, list[int]] = {}
        for position, index in enumerate(indices):
            share.setdefault(self._caller[index], []).append(position)
        lost: dict[int, SimulationError | None] = {}
        for worker, positions in share.items():
            first = self._runs[worker][0]
            local = [indices[position] - first for position in positions]
            run = slice(positions[0], positions[-1] + 1)
            request = (name, local, [value[run] for value in values], self._page)
            lost[worker] = self._send(worker, request)
        # Indices are sorted and workers own runs of them, so the parts line up. Each
        # answer is read, also after an error: the next request must not find it.
        parts = _all_or_raise([lost[w] or self._receive(w) for w in share])
        if not any(parts):
            return {}
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def _send(self, worker: int, message: object) -> SimulationError | None:
        try:
            self._pipes[worker].send(message)
        except OSError:
            return self._has_ended(worker)
        return None

    def _receive(self, worker: int) -> Any:
        try:
            return self._pipes[worker].recv()
        except (EOFError, OSError):
            return self._has_ended(worker)

    def _has_ended(self, worker: int) -> SimulationError:
        self._ended.add(worker)
        return _dead(worker)


def _entries(layout: SimulatorLayout) -> dict[Key, Entry]:
    """Return what caller and workers exchange in each step."""
    entries: dict[Key, Entry] = {
        key: (shape, "uint8" if len(shape) == 3 else "float32")
        for key, shape in layout.observation
    }
    # A float64 holds every float32, and every integer that an action can be.
    entries[_ACTION] = ((len(layout.action_low),), "float64")
    entries[_TO_RENDER] = ((), "bool")
    for key in (*_AT_RESET, *_AT_STEP):
        entries[key] = ((1,), "float32" if key == "reward" else "bool")
    return entries


def _all_or_raise(answers: list[Any]) -> list[Any]:
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return answers


def _dead(worker: int) -> SimulationError:
    return SimulationError(
        f"GymnasiumEnv: expected an answer of worker process {worker}, got none: it "
        "has ended. See its output above; a script that uses num_workers needs "
        "if __name__ == '__main__': around its code."
    )


def _serve(pipe: Connection) -> None:
    """Answer requests until the caller closes the pipe."""
    group = None
    try:
        group = pipe.recv()()
        pipe.send(group.layouts())
        first = group.first
        shared = SharedObservations.receive(pipe)
        pages = shared.rows(first, first + len(group.layouts()))
        while True:
            name, indices, values, page = pipe.recv()
            into = pages[page]
            try:
                if name == "step":
                    values = [into[_ACTION][indices], into[_TO_RENDER][indices]]
                pipe.send(getattr(group, name)(indices, *values, into=into))
            except Exception as error:
                pipe.send(_portable(error))
    except (EOFError, KeyboardInterrupt):
        pass
    except Exception as error:
        pipe.send(_portable(error))
    finally:
        if group is not None:
            group.close()


def _portable(error: Exception) -> VLAError:
    """Keep our errors as they are; turn others, which may not pickle, into text."""
    if isinstance(error, VLAError):
        return error
    return SimulationError(
        "GymnasiumEnv: expected the simulator to answer, got an error in its worker "
        f"process:\n{''.join(traceback.format_exception(error))}"
    )


def _stop(pipes: list[Connection], processes: list[SpawnProcess]) -> None:
    for pipe in pipes:
        pipe.close()
    for process in processes:
        process.join(timeout=5.0)
        if process.is_alive():
            process.terminate()
