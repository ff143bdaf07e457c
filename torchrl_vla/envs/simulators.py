"""Step gymnasium environments side by side, in this process or in workers."""

from __future__ import annotations

import multiprocessing
import traceback
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector.utils import CloudpickleWrapper

from torchrl_vla.envs.lazy_rendering import Key, RenderSpec, to_images
from torchrl_vla.schema import (
    ENVIRONMENT_STATE_KEY,
    INSTRUCTION_KEY,
    STATE_KEY,
    SUCCESS_KEY,
    MissingKeyError,
    SchemaError,
    VLAError,
)

Arrays = dict[Key, np.ndarray]
Observe = Callable[[Any], Mapping[str, Any]]

#: Where a group says which of its rows it drew, bool ``[n, 1]``.
DRAWN = "drawn"

_VECTORS = {"state": STATE_KEY, "environment_state": ENVIRONMENT_STATE_KEY}


class SimulationError(VLAError, RuntimeError):
    """A simulator failed, or the process that it lives in did."""


@dataclass(frozen=True)
class SimulatorLayout:
    """What one simulator takes and returns: equal for all that share a batch."""

    action_dtype: str
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    observation: tuple[tuple[Key, tuple[int, ...]], ...]
    says_instruction: bool


class SimulatorGroup:
    """Step several simulators one after another in this process.

    Rows are numbered from ``first_row`` in error messages, so that a worker that
    holds rows 4 to 7 names them as its caller does.

    Args:
        make_envs: one constructor per row.
        observe: maps a raw observation to a part of ``{"state": ..., "image": ...,
            "environment_state": ...}`` and, where the simulator says what to do,
            ``"instruction"``.
        success_key: the entry of ``info`` that says whether the task is done.
        drawing: how they are drawn, where ``observe`` returns no images.
        first_row: number of the first row.
    """

    def __init__(
        self,
        make_envs: Sequence[Callable[[], gymnasium.Env]],
        observe: Observe,
        success_key: str,
        drawing: RenderSpec | None = None,
        first_row: int = 0,
    ) -> None:
        self._observe, self._success_key = observe, success_key
        self._drawing, self._first_row = drawing, first_row
        self._envs = [make_env() for make_env in make_envs]
        self._layouts = [self._describe(row) for row in range(len(self._envs))]

    def layouts(self) -> list[SimulatorLayout]:
        """Return the layout of every row."""
        return self._layouts

    def reset(self, rows: Sequence[int], seeds: Sequence[int]) -> Arrays:
        """Begin the episode of each seed; returns the observations ``[n, ...]``.

        Where the simulators say instructions, also ``language_instruction``: texts, in
        an array of objects.
        """
        seen = [
            self._observe(self._envs[row].reset(seed=int(seed))[0])
            for row, seed in zip(rows, seeds)
        ]
        out = self._stack(rows, [self._map(row, s) for row, s in zip(rows, seen)])
        out |= {**self.draw(rows), DRAWN: np.ones((len(rows), 1), bool)}
        if self._layouts[rows[0]].says_instruction:
            texts = [observation["instruction"] for observation in seen]
            out[INSTRUCTION_KEY] = np.array(texts, dtype=object)
        return out

    def step(
        self, rows: Sequence[int], actions: np.ndarray, to_draw: np.ndarray
    ) -> Arrays:
        """Execute ``actions[i]`` in ``rows[i]``; adds the reward and the flags.

        Rows of ``to_draw`` and those that end are drawn: the arrays of images hold
        these rows alone, in order.
        """
        space = self._envs[rows[0]].action_space
        actions = np.clip(actions, space.low, space.high).astype(space.dtype)
        reward = np.empty((len(rows), 1), np.float32)
        terminated, truncated, success = np.empty((3, len(rows), 1), bool)
        observations = []
        for i, row in enumerate(rows):
            raw, reward[i], terminated[i], truncated[i], info = self._envs[row].step(
                actions[i]
            )
            observations.append(self._map(row, self._observe(raw)))
            success[i] = self._success(row, info)
        self._check_finite("reward", rows, reward)
        drawn = to_draw[:, None] | terminated | truncated
        return {
            **self._stack(rows, observations),
            **self.draw([row for row, is_drawn in zip(rows, drawn) if is_drawn]),
            DRAWN: drawn,
            "reward": reward,
            "terminated": terminated,
            "truncated": truncated,
            SUCCESS_KEY: success,
        }

    def draw(self, rows: Sequence[int]) -> Arrays:
        """Draw rows as they are now; nothing where ``observe`` returns the images."""
        if self._drawing is None:
            return {}
        return self._drawing([self._envs[row] for row in rows])

    def close(self) -> None:
        """Close every simulator."""
        for env in self._envs:
            env.close()

    def _success(self, row: int, info: Mapping[str, Any]) -> Any:
        if self._success_key not in info:
            raise MissingKeyError(
                f"GymnasiumEnv: expected the success of the task at info["
                f"{self._success_key!r}] in environment {row + self._first_row}, got "
                f"info with {sorted(info)}. Give success_key= one of them, or wrap "
                "the environment to write it."
            )
        return info[self._success_key]

    def _stack(self, rows: Sequence[int], observations: list[Arrays]) -> Arrays:
        for row, observation in zip(rows, observations):
            expected = tuple(
                (key, shape)
                for key, shape in self._layouts[row].observation
                if self._drawing is None or key not in self._drawing.layout
            )
            if _shapes(observation) != expected:
                raise SchemaError(
                    f"GymnasiumEnv: expected observations {dict(expected)} of "
                    f"environment {row + self._first_row}, as its observation_space "
                    f"says, got {dict(_shapes(observation))}. Correct the "
                    "environment's space."
                )
        out = {key: np.stack([o[key] for o in observations]) for key in observations[0]}
        for key in _VECTORS.values():
            if key in out:
                self._check_finite(str(key), rows, out[key])
        return out

    def _map(self, row: int, mapped: Mapping[str, Any]) -> Arrays:
        """Return what ``observe`` made of an observation as arrays of the schema."""
        observed = set(mapped) - {"instruction"}
        if "image" in observed and self._drawing is not None:
            raise SchemaError(
                "GymnasiumEnv: expected no 'image' from observe, as drawing says how "
                f"images are drawn, got {sorted(mapped)}. Leave one of the two out."
            )
        nothing = not observed and self._drawing is None
        if nothing or observed - {"image", *_VECTORS}:
            raise SchemaError(
                "GymnasiumEnv: expected 'state' and/or 'image' and/or "
                "'environment_state', and maybe 'instruction', from the function at "
                f"argument 'observe', got {sorted(mapped)}."
            )
        out: Arrays = {}
        for name, key in _VECTORS.items():
            if name in mapped:
                out[key] = np.asarray(mapped[name], dtype=np.float32)
                if out[key].ndim != 1:
                    raise SchemaError(
                        f"GymnasiumEnv: expected a vector at {name!r} of environment "
                        f"{row + self._first_row}, got shape {out[key].shape}. "
                        "Flatten it in observe."
                    )
        if mapped.get("image") is not None:
            out |= to_images(mapped["image"])
        return out

    def _check_finite(self, name: str, rows: Sequence[int], values: np.ndarray) -> None:
        if not np.isfinite(values).all():
            i, *_ = bad = np.argwhere(~np.isfinite(values))[0]
            raise SchemaError(
                f"GymnasiumEnv: expected finite numbers at {name} of environment "
                f"{rows[i] + self._first_row}, got {values[tuple(bad)]} in dimension "
                f"{bad[1]}. The simulation diverged, or the observation is undefined."
            )

    def _describe(self, row: int) -> SimulatorLayout:
        env = self._envs[row]
        space = env.action_space
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
            raise SchemaError(
                "GymnasiumEnv: expected a Box of one dimension as the action space of "
                f"environment {row + self._first_row}, got {space}. Wrap the "
                "environment with gymnasium.wrappers.TransformAction."
            )
        mapped = self._observe(env.observation_space.sample())
        images = {} if self._drawing is None else self._drawing.layout
        return SimulatorLayout(
            str(space.dtype),
            tuple(space.low.astype(float).tolist()),
            tuple(space.high.astype(float).tolist()),
            (*_shapes(self._map(row, mapped)), *images.items()),
            "instruction" in mapped,
        )


class SimulatorProcesses:
    """Step the rows of a batch in worker processes, each a :class:`SimulatorGroup`.

    Physics scales with the cores while the main process waits. Workers are spawned,
    never forked (threads and graphics contexts do not survive a fork), so a script
    that uses them needs ``if __name__ == "__main__":``.

    Args:
        make_envs: one constructor per row; pickled by value, so lambdas are fine.
        observe: see :class:`SimulatorGroup`.
        success_key: see :class:`SimulatorGroup`.
        drawing: see :class:`SimulatorGroup`.
        num_workers: processes; each gets an equal run of rows.
    """

    def __init__(
        self,
        make_envs: Sequence[Callable[[], gymnasium.Env]],
        observe: Observe,
        success_key: str,
        drawing: RenderSpec | None,
        num_workers: int,
    ) -> None:
        count = len(make_envs)
        bounds = [count * worker // num_workers for worker in range(num_workers + 1)]
        self._starts = bounds[:-1]
        self._caller = [
            w for w, (a, b) in enumerate(pairwise(bounds)) for _ in range(a, b)
        ]
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        for start, stop in pairwise(bounds):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there,), daemon=True)
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)
            # Sent rather than passed: what the worker cannot unpickle is an error that
            # it reports, and not the end of it.
            job = (list(make_envs[start:stop]), observe, success_key, drawing, start)
            self._send(len(self._pipes) - 1, CloudpickleWrapper(job))
        self._close = weakref.finalize(self, _stop, self._pipes, self._processes)
        answers = [self._receive(worker) for worker in range(num_workers)]
        self._layouts = [
            layout for answer in _all_or_raise(answers) for layout in answer
        ]

    def layouts(self) -> list[SimulatorLayout]:
        """Return the layout of every row."""
        return self._layouts

    def reset(self, rows: Sequence[int], seeds: Sequence[int]) -> Arrays:
        """Begin the episode of each seed; see :class:`SimulatorGroup`."""
        return self._call("reset", rows, np.asarray(seeds, dtype=np.int64))

    def step(
        self, rows: Sequence[int], actions: np.ndarray, to_draw: np.ndarray
    ) -> Arrays:
        """Execute ``actions[i]`` in ``rows[i]``; see :class:`SimulatorGroup`."""
        return self._call("step", rows, actions, to_draw)

    def draw(self, rows: Sequence[int]) -> Arrays:
        """Draw rows as they are now; see :class:`SimulatorGroup`."""
        return self._call("draw", rows)

    def close(self) -> None:
        """Stop the workers."""
        self._close()

    def _call(self, name: str, rows: Sequence[int], *values: np.ndarray) -> Arrays:
        share: dict[int, list[int]] = {}
        for position, row in enumerate(rows):
            share.setdefault(self._caller[row], []).append(position)
        for worker, positions in share.items():
            local = [rows[position] - self._starts[worker] for position in positions]
            self._send(worker, (name, local, [value[positions] for value in values]))
        # Rows come in rising order and workers own runs of them: parts line up.
        parts = _all_or_raise([self._receive(worker) for worker in share])
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def _send(self, worker: int, message: Any) -> None:
        try:
            self._pipes[worker].send(message)
        except OSError as error:
            raise _dead(worker) from error

    def _receive(self, worker: int) -> Any:
        try:
            return self._pipes[worker].recv()
        except (EOFError, OSError):
            return _dead(worker)


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
        group = SimulatorGroup(*pipe.recv().fn)
        pipe.send(group.layouts())
        while True:
            name, rows, values = pipe.recv()
            try:
                pipe.send(getattr(group, name)(rows, *values))
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


def _stop(pipes: list[Connection], processes: list[Any]) -> None:
    for pipe in pipes:
        pipe.close()
    for process in processes:
        process.join(timeout=5.0)
        if process.is_alive():
            process.terminate()


def _shapes(arrays: Arrays) -> tuple[tuple[Key, tuple[int, ...]], ...]:
    return tuple((key, array.shape) for key, array in arrays.items())
