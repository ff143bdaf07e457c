"""Group of gymnasium environments that are stepped in one process."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from torchrl_vla.envs.lazy_rendering import Key, to_images
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

_CALLER = "GymnasiumEnv"
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
        self._rendering, self._first = interface.rendering, first
        self._envs = [make_env() for make_env in make_envs]
        self._layouts = [self._describe(index) for index in range(len(self._envs))]

    def layouts(self) -> list[SimulatorLayout]:
        """Return the layout of every environment."""
        return self._layouts

    def reset(self, indices: Sequence[int], seeds: Sequence[int]) -> Arrays:
        """Begin the episode of each seed; returns the observations ``[n, ...]``.

        ``success`` bool ``[n, 1]`` is whether the task is done before any action. Where
        the simulators have instructions, also ``language_instruction``: texts, in an
        array of objects.
        """
        seen, mapped = [], []
        success = np.empty((len(indices), 1), bool)
        for i, (index, seed) in enumerate(zip(indices, seeds, strict=True)):
            with self._blame(index):
                raw, info = self._envs[index].reset(seed=int(seed))
                success[i] = self._success_at_reset(index, raw, info)
                seen.append(self._observe(raw))
                mapped.append(self._map(index, seen[-1]))
        out = self._stack(indices, mapped)
        out[SUCCESS_KEY] = success
        out |= {**self.render(indices), RENDERED: np.ones((len(indices), 1), bool)}
        if self._layouts[indices[0]].has_instruction:
            texts = [observation["instruction"] for observation in seen]
            out[INSTRUCTION_KEY] = np.array(texts, dtype=object)
        return out

    def step(
        self, indices: Sequence[int], actions: np.ndarray, to_render: np.ndarray
    ) -> Arrays:
        """Execute ``actions[i]`` in environment ``indices[i]``; add reward and flags.

        The environments of ``to_render`` and those that end are rendered: the arrays
        of images hold these alone, in order.
        """
        actions = actions.astype(self._layouts[indices[0]].action_dtype)
        reward = np.empty((len(indices), 1), np.float32)
        terminated, truncated, success = np.empty((3, len(indices), 1), bool)
        observations = []
        for i, index in enumerate(indices):
            with self._blame(index):
                raw, gain, ended, cut, info = self._envs[index].step(actions[i])
                where = self._where(index)
                reward[i] = gain = read_number(_CALLER, f"the reward {where}", gain)
                terminated[i] = read_flag(_CALLER, f"terminated {where}", ended)
                truncated[i] = read_flag(_CALLER, f"truncated {where}", cut)
                success[i] = self._success(index, raw, gain, bool(terminated[i]), info)
                observations.append(self._map(index, self._observe(raw)))
        rendered = to_render[:, None] | terminated | truncated
        return {
            **self._stack(indices, observations),
            **self.render(
                [
                    index
                    for index, is_rendered in zip(indices, rendered, strict=True)
                    if is_rendered
                ]
            ),
            RENDERED: rendered,
            "reward": reward,
            "terminated": terminated,
            "truncated": truncated,
            SUCCESS_KEY: success,
        }

    def render(self, indices: Sequence[int]) -> Arrays:
        """Render environments now; nothing where ``observe`` returns the images."""
        if self._rendering is None:
            return {}
        return self._rendering([self._envs[index] for index in indices])

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
        where = f"in environment {index + self._first}"
        if self._interface.success is not None:
            value = self._interface.success(observation, reward, terminated, info)
            return read_flag(_CALLER, f"the function success= {where}", value)
        key = str(self._interface.success_key)
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
        return f"of environment {index + self._first}"

    @contextmanager
    def _blame(self, index: int) -> Iterator[None]:
        """Say of an error in which environment it came up."""
        try:
            yield
        except VLAError as error:
            error.env_indices = (index + self._first,)
            raise
        except Exception as error:
            raise self._broken(index, error) from error

    def _broken(self, index: int, error: Exception) -> SimulationError:
        # The text, too: what a simulator raises may not pickle.
        broken = SimulationError(
            f"GymnasiumEnv: expected the simulator {self._where(index)} to answer, got "
            f"an error:\n{''.join(traceback.format_exception(error))}"
        )
        broken.env_indices = (index + self._first,)
        return broken

    def _stack(self, indices: Sequence[int], observations: list[Arrays]) -> Arrays:
        for index, observation in zip(indices, observations, strict=True):
            expected = tuple(
                (key, shape)
                for key, shape in self._layouts[index].observation
                if self._rendering is None or key not in self._rendering.layout
            )
            if _shapes(observation) != expected:
                error = SchemaError(
                    f"GymnasiumEnv: expected observations {dict(expected)} of "
                    f"environment {index + self._first}, as its observation_space "
                    f"says, got {dict(_shapes(observation))}. Correct the "
                    "environment's space."
                )
                error.env_indices = (index + self._first,)
                raise error
        out = {key: np.stack([o[key] for o in observations]) for key in observations[0]}
        for key in _VECTORS.values():
            if key in out:
                self._check_finite(str(key), indices, out[key])
        return out

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
                        f"{index + self._first}, got shape {out[key].shape}. "
                        "Flatten it in observe."
                    )
        if mapped.get("image") is not None:
            out |= to_images(mapped["image"])
        return out

    def _check_finite(
        self, name: str, indices: Sequence[int], values: np.ndarray
    ) -> None:
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            i, dim = bad[0]
            error = SchemaError(
                f"GymnasiumEnv: expected finite numbers at {name} of environment "
                f"{indices[i] + self._first}, got {values[i, dim]} in dimension "
                f"{dim}. The simulation diverged, or the observation is undefined."
            )
            error.env_indices = tuple(indices[i] + self._first for i in set(bad[:, 0]))
            raise error

    def _describe(self, index: int) -> SimulatorLayout:
        env = self._envs[index]
        space = env.action_space
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
            raise SchemaError(
                "GymnasiumEnv: expected a Box of one dimension as the action space of "
                f"environment {index + self._first}, got {space}. Wrap the "
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
