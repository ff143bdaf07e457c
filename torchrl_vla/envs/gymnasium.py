"""Adapter of gymnasium environments to the canonical schema."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import gymnasium
import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

from torchrl_vla._internal.constructor_signature import ConstructorSignature
from torchrl_vla.envs.first_reset import check_has_begun
from torchrl_vla.envs.lazy_rendering import Key, observation_is_needed
from torchrl_vla.envs.simulator_interface import SimulatorInterface, SimulatorOptions
from torchrl_vla.envs.simulator_processes import SimulatorProcesses
from torchrl_vla.envs.simulators import (
    RENDERED,
    Arrays,
    SimulatorGroup,
    SimulatorLayout,
)
from torchrl_vla.schema import (
    ENVIRONMENT_STATE_KEY,
    EPISODE_SEED_KEY,
    IMAGE_IS_STALE_KEY,
    IMAGE_KEY,
    INSTRUCTION_KEY,
    STATE_KEY,
    SUCCESS_KEY,
    InstructionTable,
    MissingKeyError,
    RobotDatasetMetadata,
    SchemaError,
    read_action,
    round_actions,
)

_T = TypeVar("_T")


class GymnasiumEnv(EnvBase):
    """Run a batch of gymnasium environments in the canonical schema.

    A :class:`SimulatorInterface` declares what the simulator's numbers are: state,
    images, instruction, success. Every episode is a pure function of its seed.
    ``reset`` starts the episodes that ``_reset`` marks, and nothing resets by itself;
    ``step`` steps the environments that ``_step`` marks, and the others keep their
    state and outputs and get no reward.

    Note:
        Actions outside the simulator's bounds are clipped before they are executed; the
        tensordict keeps the policy's action. Those of an integer action space are
        rounded, and refused out of range.

    **Reads** ``action`` ``[N, A]``, in the simulator's units; any float dtype.

    **Writes** ``("observation", "state")`` float32 ``[N, S]``;
    ``("observation", "environment_state")`` float32 ``[N, E]``;
    ``("observation", "image")`` uint8 ``[N, C, h, w]``, or one entry per camera below
    it; ``language_instruction`` int64 ids ``[N]`` of ``env.instructions``;
    ``episode_seed`` int64 ``[N]``; ``success`` bool ``[N, 1]``; ``reward`` float32
    ``[N, 1]``; ``done``, ``terminated``, ``truncated`` bool ``[N, 1]``; rendering on
    demand also ``image_is_stale`` bool ``[N, 1]``.

    Args:
        make_envs: one constructor per environment, or one for all with ``num_envs``.
        interface: what the simulator's outputs are.

    Keyword Args:
        instructions: the instruction of every environment, or one text each; where
            ``observe`` returns the instruction, every text that it can return.
        metadata: what state and actions mean; None = only their sizes and the action
            bounds are declared.
        num_envs: number of environments, when ``make_envs`` is a single constructor;
            None = 1.
        max_steps: time limit; an episode is ``truncated`` there. None leaves it to
            the simulator.
        options: worker processes and rendering on demand.
        seed: seed of the episode seeds; see ``set_seed``.

    Raises:
        ValueError: the numbers of constructors, environments, workers and texts
            disagree; or there is no ``rendering`` to render on demand.
        SchemaError: a simulator has another action or observation than the rest, than
            its own space or than ``metadata``; or returns non-finite numbers, or
            something else than a bool, 0 or 1 as a flag or success. An action is not
            a finite ``[N, A]``.
        SimulationError: a simulator raised something, or its process has ended.
        ExecutionError: a step before the first reset.
        MissingKeyError: a declared entry is missing; names the available ones.
        UnknownInstructionError: a simulator has an instruction outside
            ``instructions``.

    Examples:
        >>> import gymnasium
        >>> class Pendulum(gymnasium.Wrapper):
        ...     def step(self, action):
        ...         observation, *rest, info = self.env.step(action)
        ...         return observation, *rest, {"upright": observation[0] > 0.95}
        >>> env = GymnasiumEnv(
        ...     lambda: Pendulum(gymnasium.make("Pendulum-v1")),
        ...     SimulatorInterface(lambda obs: {"state": obs}, success_key="upright"),
        ...     instructions="swing the pendulum up",
        ...     num_envs=2,
        ... )
        >>> env.rollout(5)["next", "observation", "state"].shape
        torch.Size([2, 5, 3])
    """

    #: True = every action is checked before it is executed.
    checks_actions = True

    __signature__ = ConstructorSignature()

    def __init__(
        self,
        make_envs: Callable[[], gymnasium.Env] | Sequence[Callable[[], gymnasium.Env]],
        interface: SimulatorInterface,
        *,
        instructions: str | Sequence[str],
        metadata: RobotDatasetMetadata | None = None,
        num_envs: int | None = None,
        max_steps: int | None = None,
        options: SimulatorOptions = SimulatorOptions(),  # noqa: B008 (frozen)
        seed: int | None = None,
    ) -> None:
        makers = _one_per_env(
            "make_envs",
            [make_envs] if callable(make_envs) else make_envs,
            num_envs,
            callable(make_envs),
        )
        count, num_workers = len(makers), options.num_workers
        if not 0 <= num_workers <= count:
            raise ValueError(
                f"GymnasiumEnv: expected num_workers in 0 .. {count} (one environment "
                f"each at least), got {num_workers}."
            )
        if max_steps is not None and max_steps < 1:
            raise ValueError(f"GymnasiumEnv: expected max_steps >= 1, got {max_steps}.")
        if options.render_on_demand and interface.rendering is None:
            raise ValueError(
                f"{type(self).__name__}: expected images that are rendered apart from "
                "the steps with render_on_demand=True, got none. Enable images, of a "
                "gymnasium environment with rendering=RenderSpec(...)."
            )
        super().__init__(batch_size=torch.Size([count]))
        self.max_steps = max_steps
        self.render_on_demand = options.render_on_demand
        self._simulators: SimulatorGroup | SimulatorProcesses = (
            SimulatorProcesses(makers, interface, num_workers)
            if num_workers
            else SimulatorGroup(makers, interface)
        )
        layout = self._shared_layout()
        texts = [instructions] if isinstance(instructions, str) else list(instructions)
        if not layout.has_instruction:
            texts = list(
                _one_per_env(
                    "instructions", texts, count, isinstance(instructions, str)
                )
            )
        self.instructions = InstructionTable(texts)
        self.metadata = _checked_metadata(metadata, layout)
        self._make_specs(layout)
        self._elapsed = torch.full((count, 1), -1)  # -1 = it was never reset
        self._everyone = list(range(count))
        self._bounds = np.array([layout.action_low, layout.action_high])
        self._layout = layout
        blank = self.full_observation_spec.zero().update(self.full_done_spec.zero())
        self._now: dict[Any, Tensor] = dict(blank.items(True, True))
        if not layout.has_instruction:
            self._now[INSTRUCTION_KEY] = self.instructions.encode(texts)
        self._generator = torch.Generator()
        self._set_seed(seed)

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Close the simulators and stop the worker processes."""
        super().close(raise_if_closed=raise_if_closed)
        self._simulators.close()

    def render(self) -> Tensor:
        """Return the current image, uint8 ``[N, C, h, w]``; of the first camera.

        Raises:
            MissingKeyError: the environment has no images.
        """
        for key, value in self._now.items():
            if _is_image(key):
                if self.render_on_demand:
                    return torch.from_numpy(
                        self._simulators.render(self._indices(None))[key]
                    )
                return value.clone()
        raise MissingKeyError(
            f"{type(self).__name__}.render: expected an image among the observations, "
            f"got only {sorted(map(str, self._now))}. Enable images, or return one "
            "from observe."
        )

    def _shared_layout(self) -> SimulatorLayout:
        layouts = self._simulators.layouts()
        for index, layout in enumerate(layouts):
            if layout != layouts[0]:
                self._simulators.close()
                raise SchemaError(
                    "GymnasiumEnv: expected the same actions and observations in every "
                    f"environment, got {layouts[0]} in 0 and {layout} in {index}. Make "
                    "them agree in observe and with action wrappers."
                )
        return layouts[0]

    def _make_specs(self, layout: SimulatorLayout) -> None:
        batch = self.batch_size
        spec = Composite(shape=batch)
        for key, shape in layout.observation:
            shape = (*batch, *shape)
            spec[key] = (
                Unbounded(shape, dtype=torch.float32)
                if key in (STATE_KEY, ENVIRONMENT_STATE_KEY)
                else Bounded(low=0, high=255, shape=shape, dtype=torch.uint8)
            )
        spec[INSTRUCTION_KEY] = Unbounded(batch, dtype=torch.int64)
        spec[EPISODE_SEED_KEY] = Unbounded(batch, dtype=torch.int64)
        flag = Binary(shape=(*batch, 1), dtype=torch.bool)
        spec[SUCCESS_KEY] = flag
        if self.render_on_demand:
            spec[IMAGE_IS_STALE_KEY] = flag.clone()
        self.observation_spec = spec
        self.action_spec = self.metadata.make_action_spec(batch)
        self.reward_spec = Unbounded((*batch, 1))
        self.full_done_spec = Composite(
            done=flag, terminated=flag.clone(), truncated=flag.clone(), shape=batch
        )

    def _reset(
        self,
        tensordict: TensorDictBase | None = None,
        episode_seeds: Tensor | None = None,
        **kwargs: Any,
    ) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        indices = self._indices(mask)
        if episode_seeds is None:
            seeds = torch.randint(0, 2**31, (len(indices),), generator=self._generator)
        else:
            seeds = (
                torch.as_tensor(episode_seeds).expand(self.batch_size)[indices].cpu()
            )
            if (seeds < 0).any():
                raise ValueError(
                    f"{type(self).__name__}: expected episode_seeds >= 0, got "
                    f"{seeds.tolist()} for environments {indices}."
                )
        if indices:
            arrays = self._simulators.reset(indices, seeds.tolist())
            for name in ("terminated", "truncated"):
                arrays[name] = np.zeros((len(indices), 1), dtype=bool)
            arrays[EPISODE_SEED_KEY] = seeds.numpy()
            if INSTRUCTION_KEY in arrays:
                ids = [self.instructions.id(text) for text in arrays[INSTRUCTION_KEY]]
                arrays[INSTRUCTION_KEY] = np.array(ids, dtype=np.int64)
            self._elapsed[indices] = 0
            self._update(indices, arrays)
        return self._output()

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        indices = self._indices(tensordict.get("_step", None))
        rows = self._rows(indices)
        elapsed = self._elapsed[rows]
        check_has_begun(self, bool((elapsed >= 0).all()))
        arrays = self._simulators.step(
            indices,
            self._actions(tensordict, indices),
            self._to_render(tensordict, indices),
        )
        elapsed = self._elapsed[rows] = elapsed + 1
        if self.max_steps is not None:
            arrays["truncated"] |= (elapsed >= self.max_steps).numpy()
        arrays["truncated"] &= ~arrays["terminated"]
        reward = torch.zeros(*self.batch_size, 1)
        reward[rows] = torch.from_numpy(arrays.pop("reward"))
        self._update(indices, arrays)
        return self._output().set("reward", reward)

    def _indices(self, mask: Tensor | None) -> list[int]:
        if mask is None:
            return self._everyone
        return mask.reshape(self.batch_size).nonzero().flatten().tolist()

    def _rows(self, indices: list[int]) -> slice | list[int]:
        """Return the same rows; a slice for all of them, which copies nothing."""
        return slice(None) if len(indices) == len(self._everyone) else indices

    def _to_render(self, tensordict: TensorDictBase, indices: list[int]) -> np.ndarray:
        """Return the environments to render; the simulators add those that succeed."""
        if not self.render_on_demand:
            return np.ones(len(indices), dtype=bool)
        seen = observation_is_needed(tensordict, self.batch_size).cpu()[indices]
        if self.max_steps is not None:
            seen = seen | (self._elapsed[indices, 0] + 1 >= self.max_steps)
        return seen.numpy()

    def _actions(self, tensordict: TensorDictBase, indices: list[int]) -> np.ndarray:
        name, layout = type(self).__name__, self._layout
        low, high = layout.action_low, layout.action_high
        rows = tensordict.get("_step", None)
        actions = read_action(name, tensordict, self.batch_size, len(low), rows=rows)
        actions = actions.detach().cpu()
        if np.issubdtype(layout.action_dtype, np.integer):
            return round_actions(name, actions, low, high, rows=rows).numpy()[indices]
        return actions.numpy()[self._rows(indices)].clip(*self._bounds)

    def _update(self, indices: list[int], arrays: Arrays) -> None:
        """Store the outputs of the environments ``indices``; keep those of the rest."""
        rendered = arrays.pop(RENDERED)
        with_image = indices
        if self.render_on_demand:
            arrays[IMAGE_IS_STALE_KEY] = ~rendered
            with_image = [indices[i] for i in rendered.nonzero()[0].tolist()]
        for key, array in arrays.items():
            to = with_image if _is_image(key) else indices
            value = torch.from_numpy(array)
            if len(to) < self.batch_size[0]:
                if not to:
                    continue
                whole = self._now[key].clone()
                whole[to] = value
                value = whole
            elif self.render_on_demand and _is_image(key):
                value = value.clone()  # the outputs share it, and workers reuse it
            self._now[key] = value
        self._now["done"] = self._now["terminated"] | self._now["truncated"]

    def _output(self) -> TensorDict:
        # Copies, so that callers cannot change the outputs that are kept. Stale images
        # are shared, because copying them would cost as much as the physics.
        out: dict[str, Any] = {}
        for key, value in self._now.items():
            *path, name = (key,) if isinstance(key, str) else key
            inner = out
            for part in path:
                inner = inner.setdefault(part, {})
            shared = self.render_on_demand and _is_image(key)
            inner[name] = value if shared else value.clone()
        return TensorDict(out, self.batch_size, device=self.device)

    def _set_seed(self, seed: int | None) -> None:
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)


def _one_per_env(
    name: str, given: Sequence[_T], count: int | None, is_single: bool
) -> list[_T]:
    values = list(given) * (1 if count is None else count) if is_single else list(given)
    if not values or (count is not None and len(values) != count):
        raise ValueError(
            f"GymnasiumEnv: expected {'at least one' if count is None else count} at "
            f"argument {name!r}, got {len(values)}. Pass one for all environments or "
            "one each."
        )
    return values


def _is_image(key: Key) -> bool:
    return key == IMAGE_KEY or key[:-1] == IMAGE_KEY


def _checked_metadata(
    metadata: RobotDatasetMetadata | None, layout: SimulatorLayout
) -> RobotDatasetMetadata:
    shapes = dict(layout.observation)
    state_dim = shapes[STATE_KEY][0] if STATE_KEY in shapes else None
    action_dim = len(layout.action_low)
    if metadata is None:
        bounded = bool(np.isfinite([layout.action_low, layout.action_high]).all())
        return RobotDatasetMetadata(
            "gymnasium",
            action_dim=action_dim,
            state_dim=state_dim,
            action_low=layout.action_low if bounded else None,
            action_high=layout.action_high if bounded else None,
        )
    if (metadata.action_dim, metadata.state_dim) != (action_dim, state_dim):
        raise SchemaError(
            f"GymnasiumEnv: expected metadata with action_dim={action_dim} and "
            f"state_dim={state_dim}, as the simulator has, got "
            f"{metadata.action_dim} and {metadata.state_dim}."
        )
    return metadata
