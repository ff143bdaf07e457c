"""Group of gymnasium environments that are stepped in one process."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from torchrl_vla.envs.lazy_rendering import Key, empty_rows, to_images
from torchrl_vla.envs.simulator_interface import SimulatorInterface
from torchrl_vla.schema import (
    ENVIRONMENT_STATE_KEY,
    INSTRUCTION_KEY,
    STATE_KEY,
    SUCCESS_KEY,
    MissingKeyError,
    SchemaError,
    VLAError,
    read_flag,
    read_number,
)

Arrays = dict[Key, np.ndarray]

#: Key of the environments that a group rendered, bool ``[n, 1]``.
RENDERED = "rendered"

#: Key of what the simulators tell a scripted expert.
PRIVILEGED = "privileged"

#: What a group answers, beside observations.
_AT_RESET = (SUCCESS_KEY, RENDERED)
_AT_STEP = (*_AT_RESET, "reward", "terminated", "truncated")

_CALLER = "GymnasiumEnv"
_ANSWERS = {
    "reward": "the reward",
    "terminated": "terminated",
    "truncated": "truncated",
    "success": "the function success=",
}
_VECTORS = {"state": STATE_KEY, "environment_state": ENVIRONMENT_STATE_KEY}


class SimulationError(VLAError, RuntimeError):
    """A simulator failed, or the process that it lives in did."""


@dataclass(frozen=True)
class SimulatorLayout:
    """Actions and observations of one simulator; equal for all of a batch."""

    action_dtype: str
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    observation: tuple[tuple[Key, tuple[int, ...]], ...]
    has_instruction: bool


class SimulatorGroup:
    """Step several simulators one after another in this process.

    Environments are numbered from ``first`` in error messages, so that a worker that
    holds environments 4 to 7 names them as its caller does.

    Args:
        make_envs: one constructor per environment.
        interface: of the simulators.
        first: number of the first environment.
    """

    def __init__(
        self,
        make_envs: Sequence[Callable[[], gymnasium.Env]],
        interface: SimulatorInterface,
        first: int = 0,
    ) -> None:
        self._interface, self._observe = interface, interface.observe
        self._rendering, self.first = interface.rendering, first
        self._envs = [make_env() for make_env in make_envs]
        self._layouts = [self._describe(index) for index in range(len(self._envs))]
        self._seen = [dict(self._observed(index)) for index in range(len(self._envs))]
        self._names = [
            {
                name: f"{text} of environment {index + first}"
                for name, text in _ANSWERS.items()
            }
            for index in range(len(self._envs))
        ]

    def layouts(self) -> list[SimulatorLayout]:
        """Return the layout of every environment."""
        return self._layouts

    def reset(
        self,
        indices: Sequence[int],
        seeds: Sequence[int],
        into: Arrays | None = None,
    ) -> Arrays:
        """Begin the episode of each seed; returns the observations ``[n, ...]``.

        ``success`` bool ``[n, 1]`` is whether the task is done before any action. Where
        the simulators have instructions, also ``language_instruction``: texts, in an
        array of objects. With ``into``, everything else of environment ``i`` is written
        to its row ``i`` there and not returned.
        """
        out, rows = self._rows(indices, into, _AT_RESET)
        texts = []
        for row, index, seed in zip(rows, indices, seeds, strict=True):
            with self._blame(index):
                raw, info = self._envs[index].reset(seed=int(seed))
                out[SUCCESS_KEY][row] = self._success_at_reset(index, raw, info)
                out[RENDERED][row] = True
                seen = self._observe(raw)
                self._write(out, row, index, self._map(index, seen))
                texts.append(seen.get("instruction"))
        images = self.render(indices, into)
        told: Arrays = {}
        if self._layouts[indices[0]].has_instruction:
            told[INSTRUCTION_KEY] = np.array(texts, dtype=object)
        return told if into is not None else {**out, **images, **told}

    def step(
        self,
        indices: Sequence[int],
        actions: np.ndarray,
        to_render: np.ndarray,
        into: Arrays | None = None,
    ) -> Arrays:
        """Execute ``actions[i]`` in environment ``indices[i]``; add reward and flags.

        The environments of ``to_render`` and those that end are rendered: the arrays
        of images hold these alone, in order. ``into`` is as of :meth:`reset`.
        """
        actions = actions.astype(self._layouts[indices[0]].action_dtype)
        out, rows = self._rows(indices, into, _AT_STEP)
        drawn = []
        for i, (row, index, wanted) in enumerate(
            zip(rows, indices, to_render.tolist(), strict=True)
        ):
            names = self._names[index]
            with self._blame(index):
                raw, gain, ended, cut, info = self._envs[index].step(actions[i])
                gain = read_number(_CALLER, names["reward"], gain)
                ended = read_flag(_CALLER, names["terminated"], ended)
                cut = read_flag(_CALLER, names["truncated"], cut)
                success = self._success(index, raw, gain, ended, info)
                self._write(out, row, index, self._map(index, self._observe(raw)))
            is_drawn = wanted or ended or cut
            for key, value in zip(
                _AT_STEP, (success, is_drawn, gain, ended, cut), strict=True
            ):
                out[key][row] = value
            if is_drawn:
                drawn.append(index)
        images = self.render(drawn, into)
        return {} if into is not None else {**out, **images}

    def render(self, indices: Sequence[int], into: Arrays | None = None) -> Arrays:
        """Render environments now; nothing where ``observe`` returns the images."""
        if self._rendering is None:
            return {}
        envs = [self._envs[index] for index in indices]
        images = self._rendering(envs, into, None if into is None else indices)
        return images if into is None else {}

    def privileged(self, indices: Sequence[int], into: object = None) -> Arrays:
        """Return what the simulators tell a scripted expert, ``[n, ...]``.

        It is small: it is returned also where other arrays go ``into`` shared memory.
        """
        bare: list[Any] = [self._envs[index].unwrapped for index in indices]
        return {PRIVILEGED: np.stack([env.privileged() for env in bare])}

    def close(self) -> None:
        """Close every simulator."""
        for env in self._envs:
            env.close()

    def _success(
        self,
        index: int,
        observation: object,
        reward: float,
        terminated: bool,
        info: Mapping[str, object],
    ) -> bool:
        if self._interface.success is not None:
            value = self._interface.success(observation, reward, terminated, info)
            return read_flag(_CALLER, self._names[index]["success"], value)
        key = str(self._interface.success_key)
        if key in info and type(info[key]) is bool:
            return bool(info[key])
        where = f"in environment {index + self.first}"
        if key not in info:
            raise MissingKeyError(
                f"GymnasiumEnv: expected the success of the task at info[{key!r}] "
                f"{where}, got info with {sorted(map(str, info))}. Give success_key= "
                "one of them, or say it with success=lambda obs, reward, terminated, "
                "info: ..., which returns a bool, in SimulatorInterface."
            )
        return read_flag(_CALLER, f"success, info[{key!r}] {where}", info[key])

    def _success_at_reset(
        self, index: int, observation: object, info: Mapping[str, object]
    ) -> bool:
        """Return whether the task is done before any action; False = not known."""
        where = self._where(index)
        try:
            if self._interface.success is None:
                value = info[str(self._interface.success_key)]
            else:
                value = self._interface.success(observation, 0.0, False, info)
        except (LookupError, TypeError):  # few simulators say as much at a reset
            return False
        return value is not None and read_flag(
            _CALLER, f"success at the reset {where}", value
        )

    def _where(self, index: int) -> str:
        return f"of environment {index + self.first}"

    @contextmanager
    def _blame(self, index: int) -> Iterator[None]:
        """Say of an error in which environment it came up."""
        try:
            yield
        except VLAError as error:
            error.env_indices = (index + self.first,)
            raise
        except Exception as error:
            raise self._broken(index, error) from error

    def _broken(self, index: int, error: Exception) -> SimulationError:
        # The text, too: what a simulator raises may not pickle.
        broken = SimulationError(
            f"GymnasiumEnv: expected the simulator {self._where(index)} to answer, got "
            f"an error:\n{''.join(traceback.format_exception(error))}"
        )
        broken.env_indices = (index + self.first,)
        return broken

    def _rows(
        self, indices: Sequence[int], into: Arrays | None, answers: Sequence[str]
    ) -> tuple[Arrays, Sequence[int]]:
        """Return arrays for observations and answers, and the row of each index."""
        if into is not None:
            return into, indices
        count = len(indices)
        out = empty_rows(count, self._seen[indices[0]])
        for key in answers:
            out[key] = np.empty((count, 1), np.float32 if key == "reward" else bool)
        return out, range(count)

    def _observed(self, index: int) -> dict[Key, tuple[int, ...]]:
        return {
            key: shape
            for key, shape in self._layouts[index].observation
            if self._rendering is None or key not in self._rendering.layout
        }

    def _write(self, out: Arrays, row: int, index: int, observation: Arrays) -> None:
        """Copy an observation to a row, where it is what the layout says."""
        expected = self._seen[index]
        if observation.keys() != expected.keys() or any(
            value.shape != expected[key] for key, value in observation.items()
        ):
            raise SchemaError(
                f"GymnasiumEnv: expected observations {expected} of environment "
                f"{index + self.first}, as its observation_space says, got "
                f"{dict(_shapes(observation))}. Correct the environment's space."
            )
        for key, value in observation.items():
            if value.ndim == 1:
                self._check_finite(str(key), index, value)
            out[key][row] = value

    def _map(self, index: int, mapped: Mapping[str, Any]) -> Arrays:
        """Return what ``observe`` made of an observation as arrays of the schema."""
        observed = set(mapped) - {"instruction"}
        if "image" in observed and self._rendering is not None:
            raise SchemaError(
                "GymnasiumEnv: expected no 'image' from observe beside "
                f"rendering=, got {sorted(mapped)}. Leave one of the two out."
            )
        nothing = not observed and self._rendering is None
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
                        f"{index + self.first}, got shape {out[key].shape}. "
                        "Flatten it in observe."
                    )
        if mapped.get("image") is not None:
            out |= to_images(mapped["image"])
        return out

    def _check_finite(self, name: str, index: int, values: np.ndarray) -> None:
        if not np.isfinite(values).all():
            bad = np.flatnonzero(~np.isfinite(values))
            raise SchemaError(
                f"GymnasiumEnv: expected finite numbers at {name} of environment "
                f"{index + self.first}, got {values[bad[0]]} in dimension {bad[0]}. "
                "The simulation diverged, or the observation is undefined."
            )

    def _describe(self, index: int) -> SimulatorLayout:
        env = self._envs[index]
        space = env.action_space
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
            raise SchemaError(
                "GymnasiumEnv: expected a Box of one dimension as the action space of "
                f"environment {index + self.first}, got {space}. Wrap the "
                "environment with gymnasium.wrappers.TransformAction."
            )
        with self._blame(index):
            mapped = self._observe(env.observation_space.sample())
            shapes = _shapes(self._map(index, mapped))
        images = {} if self._rendering is None else self._rendering.layout
        return SimulatorLayout(
            str(space.dtype),
            tuple(space.low.astype(float).tolist()),
            tuple(space.high.astype(float).tolist()),
            (*shapes, *images.items()),
            "instruction" in mapped,
        )


def _shapes(arrays: Arrays) -> tuple[tuple[Key, tuple[int, ...]], ...]:
    return tuple((key, array.shape) for key, array in arrays.items())
