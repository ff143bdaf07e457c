"""Toy environment whose state echoes the executed action."""

from __future__ import annotations

import torch
from tensordict import NonTensorStack, TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Composite, NonTensor, Unbounded
from torchrl.envs import EnvBase

from torchrl_vla._internal.constructor_signature import ConstructorSignature
from torchrl_vla._internal.env_masks import env_mask, where_env
from torchrl_vla._internal.torchrl_spellings import torchrl_spellings
from torchrl_vla.envs.first_reset import check_has_begun
from torchrl_vla.schema import (
    EPISODE_SEED_KEY,
    IMAGE_KEY,
    INSTRUCTION_KEY,
    STATE_KEY,
    SUCCESS_KEY,
    InstructionTable,
    RobotDatasetMetadata,
    read_action,
)


@torchrl_spellings(
    same={"from_pixels": (False,), "group_repeats": (None,), "device": (None,)},
    instead={
        "image_shape": "set image_shape in a subclass",
        "instruction": "set instruction in a subclass",
        "from_pixels": "none: its image is always there",
        "render_size": "set image_shape in a subclass",
        "group_id_offset": "none: an episode is known by its episode_seed",
        "group_repeats": "ScheduledEpisodes(env, group_size=...)",
        "device": "env.to(device)",
    },
)
class ToyVLAEnv(EnvBase):
    """Echo the executed action in the state, to test executors.

    The image (a noise texture) and the instruction (a constant) hold no information;
    this environment tests plumbing, ``TabletopEnv`` tests policies. The
    first ``A`` entries of the state are the action that was just executed. Two modes:

    - *echo* (``success_steps=None``): the reward is minus the norm of the action;
      episodes end only at ``max_steps``.
    - *tracking* (``success_steps=k``): the next ``A`` entries of the state are a
      target in [-0.5, 0.5]; ``success`` and ``terminated`` are True once the action
      has been within ``success_tol`` of it (in every dimension) for ``k`` consecutive
      steps. The reward is minus the distance to the target.

    The instruction is text unless a table is given: then it is the table's id. An
    episode is a pure function of its seed and its actions.

    **Reads** ``action`` float32 ``[*B, A]`` in [-1, 1].

    **Writes** ``("observation", "image")`` uint8 ``[*B, C, h, w]``;
    ``("observation", "state")`` float32 ``[*B, S]``; ``language_instruction`` text or
    int64 ``[*B]``; ``episode_seed`` int64 ``[*B]``; in tracking mode ``success`` bool
    ``[*B, 1]``.

    Args:
        action_dim: ``A``.
        state_dim: ``S``, at least ``A``; in tracking mode at least ``2 * A``.

    Keyword Args:
        instructions: table whose first text is the instruction, written as its id; an
            empty table gets the class's ``instruction``. None = that text is written.
        success_steps: consecutive steps near the target; None is the echo mode.
        success_tol: distance, per dimension, that counts as near; in (0, 0.5].
        max_steps: time limit; an episode is ``truncated`` there. None is no limit.
        batch_size: number of environments stepped at once.
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

    #: True = every action is checked before it is executed.
    checks_actions = True

    image_shape: tuple[int, int, int] = (3, 16, 16)
    instruction: str = "push the T-shaped block onto the target"

    __signature__ = ConstructorSignature()

    def __init__(
        self,
        action_dim: int = 4,
        state_dim: int = 6,
        *,
        instructions: InstructionTable | None = None,
        success_steps: int | None = None,
        success_tol: float = 0.25,
        max_steps: int | None = None,
        batch_size: torch.Size | tuple[int, ...] | list[int] = (),
        seed: int | None = None,
    ) -> None:
        super().__init__(batch_size=torch.Size(batch_size))
        self.action_dim, self.state_dim = action_dim, state_dim
        self.success_steps, self.success_tol = success_steps, success_tol
        self.max_steps = max_steps
        self._check_arguments()
        self.emits_ids = instructions is not None
        self.instructions = InstructionTable() if instructions is None else instructions
        if self.instructions.texts:
            self.instruction = self.instructions.texts[0]
        self._instruction_id = self.instructions.add(self.instruction)
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
        self._text = NonTensorStack(
            *[self.instruction] * max(1, self.batch_size.numel())
        )
        self._make_specs()
        self._episode = {
            "seed": self._zeros(dtype=torch.int64),
            "step": self._zeros(dtype=torch.int64),
            "streak": self._zeros(dtype=torch.int64),
            "action": self._zeros(action_dim),
            "target": self._zeros(action_dim),
        }
        self._has_begun = False
        self._generator = torch.Generator()
        self._set_seed(seed)

    def to(self, device: torch.device | str) -> ToyVLAEnv:
        """Move the specs, the texture and the current episodes."""
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
                f"state echoes the action{' and holds the target' if tracking else ''}."
            )
        for name, value in (
            ("success_steps", self.success_steps),
            ("max_steps", self.max_steps),
            ("action_dim", self.action_dim),
        ):
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
        spec = Composite(shape=batch, device=device)
        spec[IMAGE_KEY] = Bounded(
            0,
            255,
            shape=(*batch, *self.image_shape),
            dtype=torch.uint8,
            device=device,
        )
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
        **kwargs: object,
    ) -> TensorDict:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        reset = env_mask(mask, self.batch_size, self.device)
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
        self._episode = _where_env(reset, fresh, self._episode)
        self._has_begun = True
        out = self._observe()
        ended = self._ended()
        return out.update(
            {key: flag & ~reset[..., None] for key, flag in ended.items()}
        )

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        check_has_begun(self, self._has_begun)
        mask = tensordict.get("_step", None)
        if mask is not None:  # a masked environment keeps its episode, without reward
            mask = mask.reshape(self.batch_size)
        action = read_action(
            "ToyVLAEnv", tensordict, self.batch_size, self.action_dim, rows=mask
        )
        before = self._episode
        near = (action - before["target"]).abs().amax(-1) <= self.success_tol
        after = {
            **before,
            "action": action,
            "step": before["step"] + 1,
            "streak": torch.where(near, before["streak"] + 1, 0),
        }
        # In echo mode the target is zero: the reward is minus the action's norm.
        reward = -(action - before["target"]).norm(dim=-1, keepdim=True)
        if mask is not None:
            after = _where_env(mask, after, before)
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
        needed = 0 if self.success_steps is None else self.success_steps
        return (self._episode["streak"] >= needed).unsqueeze(-1)

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
        return out

    def _instruct(self, out: TensorDict) -> None:
        if self.emits_ids:
            ids = torch.full(self.batch_size, self._instruction_id, device=self.device)
            out.set(INSTRUCTION_KEY, ids)
        elif self.batch_size:
            out.set(INSTRUCTION_KEY, self._text.reshape(self.batch_size))
        else:
            out.set(INSTRUCTION_KEY, self.instruction)

    def _set_seed(self, seed: int | None) -> None:
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)


def _flag(batch: torch.Size, device: torch.device | None) -> Binary:
    return Binary(shape=(*batch, 1), dtype=torch.bool, device=device)


def _where_env(
    mask: Tensor, new: dict[str, Tensor], old: dict[str, Tensor]
) -> dict[str, Tensor]:
    return {key: where_env(mask, value, old[key]) for key, value in new.items()}


def _targets(seeds: Tensor, action_dim: int) -> Tensor:
    """Sample one target in [-0.5, 0.5] per seed, independent of the other seeds."""
    rows = torch.empty(seeds.numel(), action_dim)
    for row, seed in zip(rows, seeds.flatten().tolist(), strict=True):
        generator = torch.Generator().manual_seed(seed)
        torch.rand((action_dim,), generator=generator, out=row)
    return rows.sub_(0.5).reshape(*seeds.shape, action_dim)
