"""Any gymnasium environment in the canonical schema."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

from torchrl_vla.envs.lazy_rendering import Key, RenderSpec, observation_is_needed
from torchrl_vla.envs.simulators import (
    DRAWN,
    Arrays,
    Observe,
    SimulatorGroup,
    SimulatorLayout,
    SimulatorProcesses,
)
from torchrl_vla.schema import (
    ACTION_KEY,
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
)

_FLAGS = ("terminated", "truncated", SUCCESS_KEY)


class GymnasiumEnv(EnvBase):
    """Run a batch of gymnasium environments in the canonical schema.

    A simulator becomes usable by every policy, executor and evaluation here by
    declaring what its numbers cannot say: what in its observation is state and image,
    what it is told to do, and where it reports success. Nothing is
    reset behind the caller's back: ``reset`` begins the episodes that ``_reset``
    marks, each a pure function of its seed; ``step`` moves the rows that ``_step``
    marks, the others keep their state and outputs and earn nothing. The surprise:
    actions outside the simulator's bounds are clipped to them before they are
    executed, while the tensordict keeps what the policy said.

    **Reads** ``action`` float32 ``[N, A]``, in the simulator's units.

    **Writes** ``("observation", "state")`` float32 ``[N, S]``;
    ``("observation", "environment_state")`` float32 ``[N, E]``;
    ``("observation", "image")`` uint8 ``[N, C, h, w]``, or one entry per camera below
    it; ``language_instruction`` int64 ids ``[N]`` of ``env.instructions``;
    ``episode_seed`` int64 ``[N]``; ``success`` bool ``[N, 1]``; ``reward`` float32
    ``[N, 1]``; ``done``, ``terminated``, ``truncated`` bool ``[N, 1]``; drawing on
    demand also ``image_is_stale`` bool ``[N, 1]``.

    Args:
        make_envs: one constructor per row, or one for all with ``num_envs``.

    Keyword Args:
        observe: maps a raw observation to ``{"state": [S], "environment_state": [E],
            "image": [h, w, C] uint8 or {camera: image}, "instruction": text}`` or a
            part of it: a function, or :class:`ObservationKeys`. The instruction is
            read at resets only.
        instructions: what every row is told, or one text per row; where ``observe``
            returns the instruction, every text that it can return.
        success_key: the entry of ``info`` that says whether the task is done.
        num_envs: rows, when ``make_envs`` is a single constructor (then 1 if left
            out).
        max_steps: time limit; an episode is ``truncated`` there. None leaves it to
            the simulator.
        num_workers: processes that share the rows; 0 steps them in this one.
        metadata: what state and actions mean; left out, only their sizes and the
            action bounds are declared.
        drawing: how the simulator is drawn apart from its steps, where ``observe``
            returns no images.
        render_on_demand: True = draw only where a policy looks: at resets, in rows that
            are done, and unless ``observation_needed`` is False (bool ``[N, 1]``, which
            the executors write). A row that is not drawn keeps its last image, and
            ``image_is_stale`` says so. TorchRL's own worker processes do not pass
            ``observation_needed`` on; ``num_workers`` does.
        seed: seed of the episode seeds; see ``set_seed``.

    Raises:
        ValueError: the numbers of constructors, rows, workers and texts disagree; or
            nothing says how to draw on demand.
        SchemaError: a simulator has another action or observation than the rest, than
            its own space or than ``metadata`` says; or returns non-finite numbers.
        MissingKeyError: a declared entry is absent; names what there is.
        UnknownInstructionError: a simulator says what ``instructions`` does not have.

    Examples:
        >>> import gymnasium
        >>> class Pendulum(gymnasium.Wrapper):
        ...     def step(self, action):
        ...         observation, *rest, info = self.env.step(action)
        ...         return observation, *rest, {"upright": observation[0] > 0.95}
        >>> env = GymnasiumEnv(
        ...     lambda: Pendulum(gymnasium.make("Pendulum-v1")),
        ...     num_envs=2,
        ...     observe=lambda observation: {"state": observation},
        ...     instructions="swing the pendulum up",
        ...     success_key="upright",
        ... )
        >>> env.rollout(5)["next", "observation", "state"].shape
        torch.Size([2, 5, 3])
    """

    def __init__(
        self,
        make_envs: Callable[[], gymnasium.Env] | Sequence[Callable[[], gymnasium.Env]],
        *,
        observe: Observe,
        instructions: str | Sequence[str],
        success_key: str,
        num_envs: int | None = None,
        max_steps: int | None = None,
        num_workers: int = 0,
        metadata: RobotDatasetMetadata | None = None,
        drawing: RenderSpec | None = None,
        render_on_demand: bool = False,
        seed: int | None = None,
    ) -> None:
        makers = _one_per_row("make_envs", make_envs, num_envs, callable(make_envs))
        rows = len(makers)
        if not 0 <= num_workers <= rows:
            raise ValueError(
                f"GymnasiumEnv: expected num_workers in 0 .. {rows} (one environment "
                f"each at least), got {num_workers}."
            )
        if max_steps is not None and max_steps < 1:
            raise ValueError(f"GymnasiumEnv: expected max_steps >= 1, got {max_steps}.")
        if render_on_demand and drawing is None:
            raise ValueError(
                f"{type(self).__name__}: expected images that are drawn apart from the "
                "steps with render_on_demand=True, got none. Ask for images, of a "
                "gymnasium environment with drawing=RenderSpec(...)."
            )
        super().__init__(batch_size=torch.Size([rows]))
        self.max_steps = max_steps
        self.render_on_demand = render_on_demand
        self._simulators: SimulatorGroup | SimulatorProcesses = (
            SimulatorProcesses(makers, observe, success_key, drawing, num_workers)
            if num_workers
            else SimulatorGroup(makers, observe, success_key, drawing)
        )
        layout = self._shared_layout()
        single = isinstance(instructions, str)
        texts = [instructions] if single else list(instructions)
        if not layout.says_instruction:
            texts = list(_one_per_row("instructions", instructions, rows, single))
        self.instructions = InstructionTable(texts)
        self.metadata = _checked_metadata(metadata, layout)
        self._make_specs(layout)
        self._elapsed = torch.zeros(rows, 1, dtype=torch.int64)
        blank = self.full_observation_spec.zero().update(self.full_done_spec.zero())
        self._now: dict[Any, Tensor] = dict(blank.items(True, True))
        if not layout.says_instruction:
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
                        self._simulators.draw(self._rows(None))[key]
                    )
                return value.clone()
        raise MissingKeyError(
            f"{type(self).__name__}.render: expected an image among the observations, "
            f"got only {sorted(map(str, self._now))}. Build it with cameras, or let "
            "observe return an image."
        )

    def _shared_layout(self) -> SimulatorLayout:
        layouts = self._simulators.layouts()
        for row, layout in enumerate(layouts):
            if layout != layouts[0]:
                self._simulators.close()
                raise SchemaError(
                    "GymnasiumEnv: expected the same actions and observations in every "
                    f"row, got {layouts[0]} in row 0 and {layout} in row {row}. Make "
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
        rows = self._rows(mask)
        if episode_seeds is None:
            seeds = torch.randint(0, 2**31, (len(rows),), generator=self._generator)
        else:
            seeds = torch.as_tensor(episode_seeds).expand(self.batch_size)[rows].cpu()
            if (seeds < 0).any():
                raise ValueError(
                    f"{type(self).__name__}: expected episode_seeds >= 0, got "
                    f"{seeds.tolist()} for rows {rows}."
                )
        if rows:
            arrays = self._simulators.reset(rows, seeds.tolist())
            for name in _FLAGS:
                arrays[name] = np.zeros((len(rows), 1), dtype=bool)
            arrays[EPISODE_SEED_KEY] = seeds.numpy()
            if INSTRUCTION_KEY in arrays:
                ids = [self.instructions.id(text) for text in arrays[INSTRUCTION_KEY]]
                arrays[INSTRUCTION_KEY] = np.array(ids, dtype=np.int64)
            self._elapsed[rows] = 0
            self._update(rows, arrays)
        return self._output()

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        rows = self._rows(tensordict.get("_step", None))
        arrays = self._simulators.step(
            rows, self._actions(tensordict, rows), self._to_draw(tensordict, rows)
        )
        self._elapsed[rows] += 1
        if self.max_steps is not None:
            arrays["truncated"] |= (self._elapsed[rows] >= self.max_steps).numpy()
        arrays["truncated"] &= ~arrays["terminated"]
        reward = torch.zeros(*self.batch_size, 1)
        reward[rows] = torch.from_numpy(arrays.pop("reward"))
        self._update(rows, arrays)
        return self._output().set("reward", reward)

    def _rows(self, mask: Tensor | None) -> list[int]:
        if mask is None:
            return list(range(self.batch_size[0]))
        return mask.reshape(self.batch_size).nonzero().flatten().tolist()

    def _to_draw(self, tensordict: TensorDictBase, rows: list[int]) -> np.ndarray:
        """Which rows to draw, done or not; the simulators know who succeeds."""
        if not self.render_on_demand:
            return np.ones(len(rows), dtype=bool)
        seen = observation_is_needed(tensordict, self.batch_size).cpu()[rows]
        if self.max_steps is not None:
            seen = seen | (self._elapsed[rows, 0] + 1 >= self.max_steps)
        return seen.numpy()

    def _actions(self, tensordict: TensorDictBase, rows: list[int]) -> np.ndarray:
        actions = tensordict.get(ACTION_KEY).detach().cpu().numpy()[rows]
        if not np.isfinite(actions).all():
            bad = [row for row, a in zip(rows, actions) if not np.isfinite(a).all()]
            raise SchemaError(
                f"{type(self).__name__}: expected finite numbers at 'action', got NaN "
                f"or infinity in rows {bad}. No row was moved. Look at the policy's "
                "output and at the statistics that denormalize it."
            )
        return actions

    def _update(self, rows: list[int], arrays: Arrays) -> None:
        """Take in what the simulators of ``rows`` returned; others stay as they are."""
        drawn = arrays.pop(DRAWN)
        if self.render_on_demand:
            arrays[IMAGE_IS_STALE_KEY] = ~drawn
        rows_drawn = [row for row, is_drawn in zip(rows, drawn) if is_drawn]
        for key, array in arrays.items():
            to = rows_drawn if _is_image(key) else rows
            value = torch.from_numpy(array)
            if len(to) < self.batch_size[0]:
                if not to:
                    continue
                whole = self._now[key].clone()
                whole[to] = value
                value = whole
            self._now[key] = value
        self._now["done"] = self._now["terminated"] | self._now["truncated"]

    def _output(self) -> TensorDict:
        # Copies: what callers do to them must not change the rows that stay behind. A
        # copy of images that nobody looks at would cost as much as the physics.
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


def _one_per_row(
    name: str, value: Any, rows: int | None, is_single: bool
) -> Sequence[Any]:
    values = [value] * (1 if rows is None else rows) if is_single else list(value)
    if not values or (rows is not None and len(values) != rows):
        raise ValueError(
            f"GymnasiumEnv: expected {'at least one' if rows is None else rows} at "
            f"argument {name!r}, got {len(values)}. Give one for all rows or one each."
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
