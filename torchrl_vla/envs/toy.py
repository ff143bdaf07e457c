"""A toy environment whose state echoes the executed action."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import NonTensorStack, TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Composite, NonTensor, Unbounded
from torchrl.envs import EnvBase

from torchrl_vla.schema import (
    ACTION_KEY,
    EPISODE_SEED_KEY,
    IMAGE_KEY,
    INSTRUCTION_KEY,
    STATE_KEY,
    SUCCESS_KEY,
    InstructionTable,
    RobotDatasetMetadata,
)

_RED, _GREEN, _BACKGROUND = (220, 60, 60), (60, 200, 60), 30


class ToyVLAEnv(EnvBase):
    """Echo the executed action in the state, to make an executor's work visible.

    There is nothing to learn from the image (a noise texture) or the instruction (a
    constant); this environment tests plumbing, ``TabletopEnv`` tests policies. The
    first ``A`` entries of the state are the action that was just executed. Two modes:

    - *echo* (``success_steps=None``): the reward is minus the norm of the action;
      episodes end only at ``max_steps``.
    - *tracking* (``success_steps=k``): the next ``A`` entries of the state are a
      target in [-0.5, 0.5]; ``success`` and ``terminated`` are True once the action
      has been within ``success_tol`` of it (in every dimension) for ``k`` consecutive
      steps. The reward is minus the distance to the target.

    The instruction is text unless a table is given: then it is the table's id, as on
    every hot path. An episode is a pure function of its seed and its actions.

    **Reads** ``action`` float32 ``[*B, A]`` in [-1, 1].

    **Writes** ``("observation", "image")`` uint8 ``[*B, C, h, w]``;
    ``("observation", "state")`` float32 ``[*B, S]``; ``language_instruction`` text or
    int64 ``[*B]``; ``episode_seed`` int64 ``[*B]``; in tracking mode ``success`` bool
    ``[*B, 1]``; with ``from_pixels`` also ``pixels`` uint8 ``[*B, size, size, 3]``, a
    image of the action (red) and the target (green).

    Args:
        action_dim: ``A``.
        state_dim: ``S``, at least ``A``; in tracking mode at least ``2 * A``.
        image_shape: ``(C, h, w)``.
        instruction: what every episode is told.

    Keyword Args:
        from_pixels: also write ``pixels``, for video recorders.
        render_size: side of ``pixels``.
        success_steps: consecutive steps near the target; None is the echo mode.
        success_tol: distance, per dimension, that counts as near; in (0, 0.5].
        max_steps: time limit; an episode is ``truncated`` there. None is no limit.
        instructions: table that turns the instruction into an id.
        batch_size: number of environments stepped at once.
        device: device of everything.
        seed: seed of the episode seeds; see ``set_seed``.

    Raises:
        ValueError: the state is too small, or an argument is out of its range.

    Examples:
        >>> import torch
        >>> env = ToyVLAEnv(batch_size=[2])
        >>> td = env.reset()
        >>> td["language_instruction"][0]
        'push the T-shaped block onto the target'
        >>> td["action"] = 0.5 * torch.ones(2, 4)
        >>> env.step(td)["next", "observation", "state"][:, :4].unique()
        tensor([0.5000])
    """

    def __init__(
        self,
        action_dim: int = 4,
        state_dim: int = 6,
        image_shape: tuple[int, int, int] = (3, 16, 16),
        instruction: str = "push the T-shaped block onto the target",
        *,
        from_pixels: bool = False,
        render_size: int = 64,
        success_steps: int | None = None,
        success_tol: float = 0.25,
        max_steps: int | None = None,
        instructions: InstructionTable | None = None,
        batch_size: torch.Size | tuple[int, ...] | list[int] = (),
        device: torch.device | str | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(batch_size=torch.Size(batch_size), device=device)
        self.action_dim, self.state_dim = action_dim, state_dim
        self.image_shape = tuple(image_shape)
        self.instruction = instruction
        self.from_pixels, self.render_size = from_pixels, render_size
        self.success_steps, self.success_tol = success_steps, success_tol
        self.max_steps = max_steps
        self._check_arguments()
        self.emits_ids = instructions is not None
        self.instructions = InstructionTable() if instructions is None else instructions
        self._instruction_id = self.instructions.add(instruction)
        self.metadata = RobotDatasetMetadata(
            "toy",
            action_dim=action_dim,
            state_dim=state_dim,
            action_low=(-1.0,) * action_dim,
            action_high=(1.0,) * action_dim,
        )
        texture = torch.Generator().manual_seed(0)
        self._texture = torch.randint(
            0, 256, self.image_shape, dtype=torch.uint8, generator=texture
        ).to(self.device)
        self._text = NonTensorStack(*[instruction] * max(1, self.batch_size.numel()))
        self._make_specs()
        self._episode = {
            "seed": self._zeros(dtype=torch.int64),
            "step": self._zeros(dtype=torch.int64),
            "streak": self._zeros(dtype=torch.int64),
            "action": self._zeros(action_dim),
            "target": self._zeros(action_dim),
        }
        self._generator = torch.Generator()
        self._set_seed(seed)

    def to(self, device: torch.device | str) -> ToyVLAEnv:
        """Move the specs, the texture and the episodes that are going on."""
        super().to(device)
        self._texture = self._texture.to(device)
        self._episode = {key: value.to(device) for key, value in self._episode.items()}
        return self

    def _check_arguments(self) -> None:
        tracking = self.success_steps is not None
        needed = self.action_dim * (2 if tracking else 1)
        if self.state_dim < needed:
            raise ValueError(
                f"ToyVLAEnv: expected state_dim >= {needed}, got {self.state_dim}. The "
                f"state echoes the action{' and shows the target' if tracking else ''}."
            )
        for name in ("success_steps", "max_steps", "render_size", "action_dim"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(
                    f"ToyVLAEnv: expected a positive int at argument {name!r}, got "
                    f"{value!r}."
                )
        if not 0.0 < self.success_tol <= 0.5:
            raise ValueError(
                "ToyVLAEnv: expected success_tol in (0, 0.5], got "
                f"{self.success_tol}. Targets lie in [-0.5, 0.5], actions in [-1, 1]."
            )

    def _zeros(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        shape = (*self.batch_size, *shape)
        return torch.zeros(shape, dtype=dtype, device=self.device)

    def _make_specs(self) -> None:
        batch, device = self.batch_size, self.device
        pixel = {"low": 0, "high": 255, "dtype": torch.uint8, "device": device}
        spec = Composite(shape=batch, device=device)
        spec[IMAGE_KEY] = Bounded(shape=(*batch, *self.image_shape), **pixel)
        spec[STATE_KEY] = self.metadata.make_state_spec(batch, device)
        if self.emits_ids:
            spec[INSTRUCTION_KEY] = Unbounded(batch, dtype=torch.int64, device=device)
        else:
            spec[INSTRUCTION_KEY] = NonTensor(
                batch, example_data=self.instruction, device=device
            )
        spec[EPISODE_SEED_KEY] = Unbounded(batch, dtype=torch.int64, device=device)
        if self.success_steps is not None:
            spec[SUCCESS_KEY] = _flag(batch, device)
        if self.from_pixels:
            size = self.render_size
            spec["pixels"] = Bounded(shape=(*batch, size, size, 3), **pixel)
        self.observation_spec = spec
        self.action_spec = self.metadata.make_action_spec(batch, device)
        self.reward_spec = Unbounded((*batch, 1), device=device)
        self.full_done_spec = Composite(
            done=_flag(batch, device),
            terminated=_flag(batch, device),
            truncated=_flag(batch, device),
            shape=batch,
            device=device,
        )

    def _reset(
        self,
        tensordict: TensorDictBase | None = None,
        episode_seeds: Tensor | None = None,
        **kwargs: Any,
    ) -> TensorDict:
        reset = None if tensordict is None else tensordict.get("_reset", None)
        if reset is None:
            reset = torch.ones(self.batch_size, dtype=torch.bool, device=self.device)
        reset = reset.reshape(self.batch_size)
        if episode_seeds is None:
            episode_seeds = torch.randint(
                0, 2**31, self.batch_size, generator=self._generator
            )
        seeds = torch.as_tensor(episode_seeds).expand(self.batch_size)
        fresh = {key: torch.zeros_like(value) for key, value in self._episode.items()}
        fresh["seed"] = seeds.to(self.device, torch.int64)
        if self.success_steps is not None:
            fresh["target"][reset] = _targets(seeds[reset.cpu()], self.action_dim).to(
                self.device
            )
        self._episode = _choose(reset, fresh, self._episode)
        out = self._observe()
        ended = self._ended()
        return out.update(
            {key: flag & ~reset[..., None] for key, flag in ended.items()}
        )

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        action = tensordict.get(ACTION_KEY)
        before = self._episode
        near = (action - before["target"]).abs().amax(-1) <= self.success_tol
        after = {
            **before,
            "action": action.to(torch.float32),
            "step": before["step"] + 1,
            "streak": torch.where(near, before["streak"] + 1, 0),
        }
        # In echo mode the target is zero: the reward is minus the action's norm.
        reward = -(action - before["target"]).norm(dim=-1, keepdim=True)
        mask = tensordict.get("_step", None)
        if mask is not None:  # a masked-out row keeps its episode and earns nothing
            mask = mask.reshape(self.batch_size)
            after = _choose(mask, after, before)
            reward = torch.where(mask[..., None], reward, 0)
        self._episode = after
        out = self._observe()
        out.set("reward", reward)
        return out.update(self._ended())

    def _ended(self) -> dict[str, Tensor]:
        never = self._zeros(1, dtype=torch.bool)
        terminated = never if self.success_steps is None else self._success()
        truncated = never
        if self.max_steps is not None:
            truncated = (self._episode["step"] >= self.max_steps).unsqueeze(-1)
        return {
            "terminated": terminated,
            "truncated": truncated.clone(),
            "done": terminated | truncated,
        }

    def _success(self) -> Tensor:
        return (self._episode["streak"] >= self.success_steps).unsqueeze(-1)

    def _observe(self) -> TensorDict:
        episode = self._episode
        state = self._zeros(self.state_dim)
        state[..., : self.action_dim] = episode["action"]
        if self.success_steps is not None:
            state[..., self.action_dim : 2 * self.action_dim] = episode["target"]
        brightness = (episode["seed"] + 37 * episode["step"]).to(torch.uint8)
        image = self._texture + brightness[..., None, None, None]  # wraps around
        out = TensorDict(
            {"observation": {"image": image, "state": state}},
            self.batch_size,
            device=self.device,
        )
        self._instruct(out)
        out.set(EPISODE_SEED_KEY, episode["seed"].clone())
        if self.success_steps is not None:
            out.set(SUCCESS_KEY, self._success())
        if self.from_pixels:
            out.set("pixels", self._render())
        return out

    def _instruct(self, out: TensorDict) -> None:
        if self.emits_ids:
            text = torch.full(self.batch_size, self._instruction_id, device=self.device)
        elif self.batch_size:
            text = self._text.reshape(self.batch_size)
        else:
            text = self.instruction
        out.set(INSTRUCTION_KEY, text)

    def _render(self) -> Tensor:
        size = self.render_size
        canvas = torch.full(
            (*self.batch_size, size, size, 3),
            _BACKGROUND,
            dtype=torch.uint8,
            device=self.device,
        )
        points = [(self._episode["action"], _RED)]
        if self.success_steps is not None:
            points.append((self._episode["target"], _GREEN))
        pixel = torch.arange(size, device=self.device)
        for point, color in points:
            at = ((point.clamp(-1, 1) + 1) / 2 * (size - 1)).round()
            across = (pixel - at[..., :1]).abs() <= 2
            down = (pixel - at[..., -1:]).abs() <= 2
            marker = down[..., :, None, None] & across[..., None, :, None]
            paint = torch.tensor(color, dtype=torch.uint8, device=self.device)
            canvas = torch.where(marker, paint, canvas)
        return canvas

    def _set_seed(self, seed: int | None) -> None:
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)


def _flag(batch: torch.Size, device: torch.device | None) -> Binary:
    return Binary(shape=(*batch, 1), dtype=torch.bool, device=device)


def _choose(
    rows: Tensor, new: dict[str, Tensor], old: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Take ``new`` where ``rows`` (bool ``[*B]``) is True, and ``old`` elsewhere."""
    entries = rows.unsqueeze(-1)
    return {
        key: torch.where(entries if value.ndim > rows.ndim else rows, value, old[key])
        for key, value in new.items()
    }


def _targets(seeds: Tensor, action_dim: int) -> Tensor:
    """Draw one target in [-0.5, 0.5] per seed, whatever the others are."""
    rows = torch.empty(seeds.numel(), action_dim)
    for row, seed in zip(rows, seeds.flatten().tolist()):
        generator = torch.Generator().manual_seed(seed)
        torch.rand((action_dim,), generator=generator, out=row)
    return rows.sub_(0.5).reshape(*seeds.shape, action_dim)
