"""Embedded default environment: coloured blocks on a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

from torchrl_vla._internal.constructor_signature import ConstructorSignature
from torchrl_vla._internal.env_masks import env_mask
from torchrl_vla.envs.first_reset import check_has_begun
from torchrl_vla.envs.lazy_rendering import observation_is_needed
from torchrl_vla.envs.tabletop.expert import TabletopExpert
from torchrl_vla.envs.tabletop.scene import MAX_SPEED, PALETTE, PLACES, Scene
from torchrl_vla.envs.tabletop.tabletop_rendering import render_camera, render_scene
from torchrl_vla.schema import (
    EPISODE_SEED_KEY,
    IMAGE_IS_STALE_KEY,
    INSTRUCTION_KEY,
    SUCCESS_KEY,
    InstructionTable,
    RobotDatasetMetadata,
    read_action,
)

_TASKS = ("reach", "push")
_RATE_HZ = 10.0


class TabletopEnv(EnvBase):
    """Reach or push the block that the instruction names, on ``N`` tables at once.

    The smallest task in which vision, language and action all matter. The image holds
    the blocks and not the gripper, the state the gripper and not the blocks, and only
    the instruction names the block: a policy without one of the three is at chance
    level. (A policy with memory can do without the state, by driving the gripper into a
    corner.) To reach, stop over the block (an action shorter than one half lowers the
    gripper); lowering it onto a wrong block, or pushing against one, ends the episode,
    so trial and error does not pay. Everything is batched torch on one device; move it
    with ``to``.

    **Reads** ``action`` float32 ``[N, 2]`` in ``[-1, 1]``: the gripper's displacement,
    where 1 is a tenth of a table unit (the table is ``[-1, 1]`` by ``[-1, 1]``).

    **Writes** ``observation.image`` uint8 ``[N, 3, size, size]``, ``observation.state``
    float32 ``[N, 2]`` (the gripper's x and y, table units), ``language_instruction``
    int64 ``[N]``, ``success`` bool ``[N, 1]``, ``episode_seed`` int64 ``[N]``, reward
    (1 on the successful step, else 0), and ``terminated`` on success or at a
    wrong block, ``truncated`` at ``max_steps``; rendering on demand also
    ``image_is_stale`` bool ``[N, 1]``.

    Args:
        num_envs: ``N``, the number of tables.

    Keyword Args:
        tasks: ``"reach"`` ("reach the red block"), ``"push"`` ("push the red block to
            the left"), or both, sampled evenly.
        num_blocks: blocks on a table, each of another colour, 2 to 6.
        colors: of the blocks that an instruction may name; empty = all six. With one,
            ``"reach"`` has a single instruction, for policies that read no text.
        image_size: side of the camera image in pixels.
        max_steps: time limit in steps; None is 40, or 100 with pushing.
        render_on_demand: True = render only what a policy reads: at resets, at the end
            of episodes, and unless ``observation_needed`` is False (bool ``[N, 1]``,
            which the executors write). Other environments keep their last image;
            ``image_is_stale`` is True where a block has moved since.
        seed: of the episode seeds of resets that name none.

    Raises:
        ValueError: an argument is out of its range.

    Examples:
        >>> env = TabletopEnv(4, seed=0)
        >>> step = env.reset()
        >>> step["observation", "image"].shape
        torch.Size([4, 3, 48, 48])
        >>> env.instructions.decode(step["language_instruction"])[0]
        'reach the yellow block'
        >>> expert = env.make_expert()
        >>> env.rollout(40, expert)["next", "reward"].sum().item()
        1.0
    """

    __signature__ = ConstructorSignature()

    def __init__(
        self,
        num_envs: int = 1,
        *,
        tasks: Sequence[str] = ("reach",),
        num_blocks: int = 3,
        colors: Sequence[str] = (),
        image_size: int = 48,
        max_steps: int | None = None,
        render_on_demand: bool = False,
        seed: int | None = None,
    ) -> None:
        unknown = set(tasks) - set(_TASKS)
        if not tasks or unknown or isinstance(tasks, str):
            raise ValueError(
                f"TabletopEnv: expected tasks from {_TASKS}, got {tasks!r}. Pass a "
                "tuple of one or both."
            )
        if isinstance(colors, str) or not set(colors) <= set(PALETTE):
            raise ValueError(
                f"TabletopEnv: expected colors from {tuple(PALETTE)}, got {colors!r}. "
                "Pass a tuple of some, or none for all."
            )
        for name, value, low, high in (
            ("num_envs", num_envs, 1, 1 << 20),
            ("num_blocks", num_blocks, 2, len(PALETTE)),
            ("image_size", image_size, 8, 1024),
            ("max_steps", 1 if max_steps is None else max_steps, 1, 1 << 20),
        ):
            if not low <= value <= high:
                raise ValueError(
                    f"TabletopEnv: expected {name} in {low}..{high}, got {value}."
                )
        super().__init__(device=torch.device("cpu"), batch_size=torch.Size([num_envs]))
        self.tasks = tuple(tasks)
        self.num_blocks = num_blocks
        self.colors = tuple(color for color in PALETTE if color in colors or not colors)
        self.image_size = image_size
        self.max_steps = max_steps or (100 if "push" in tasks else 40)
        self.render_on_demand = render_on_demand
        self.instructions = InstructionTable(_texts(self.tasks, self.colors))
        self.metadata = RobotDatasetMetadata(
            "tabletop",
            embodiment_id="tabletop gripper",
            action_names=("dx", "dy"),
            action_units=(f"{MAX_SPEED} table",) * 2,
            action_reference=("delta", "delta"),
            action_space=("end_effector", "end_effector"),
            action_low=(-1.0, -1.0),
            action_high=(1.0, 1.0),
            state_names=("x", "y"),
            state_units=("table", "table"),
            control_frequency_hz=_RATE_HZ,
            cameras=("image",),
        )
        self._ids = InstructionTable(_texts(self.tasks, PALETTE)).ids.to(self.device)
        self._named_colors: Tensor | None = None
        if len(self.colors) < len(PALETTE):
            named = [list(PALETTE).index(color) for color in self.colors]
            self._named_colors = torch.tensor(named, device=self.device)
        self._make_specs()
        self._generator = torch.Generator(device=self.device)
        self.set_seed(torch.seed() % (1 << 31) if seed is None else seed)

    scene: Scene  # of the last reset

    def to(self, device: torch.device | str) -> TabletopEnv:
        """Move specs and random numbers; the next reset starts episodes there."""
        super().to(device)
        self._ids = self._ids.to(device)
        if self._named_colors is not None:
            self._named_colors = self._named_colors.to(device)
        self._generator = torch.Generator(device).manual_seed(
            self._generator.initial_seed()
        )
        self.__dict__.pop("scene", None)
        return self

    def _make_specs(self) -> None:
        shape, device = self.batch_size, self.device
        image = Bounded(
            0,
            255,
            shape=(*shape, 3, self.image_size, self.image_size),
            dtype=torch.uint8,
            device=device,
        )
        self.observation_spec = Composite(
            observation=Composite(
                image=image,
                state=Bounded(-1.0, 1.0, shape=(*shape, 2), device=device),
                shape=shape,
            ),
            language_instruction=Unbounded(shape, dtype=torch.int64, device=device),
            success=Binary(shape=(*shape, 1), dtype=torch.bool, device=device),
            episode_seed=Unbounded(shape, dtype=torch.int64, device=device),
            shape=shape,
        )
        if self.render_on_demand:
            self.observation_spec[IMAGE_IS_STALE_KEY] = Binary(
                shape=(*shape, 1), dtype=torch.bool, device=device
            )
        self.action_spec = self.metadata.make_action_spec(shape, device)
        self.reward_spec = Bounded(0.0, 1.0, shape=(*shape, 1), device=device)
        flag = Binary(shape=(*shape, 1), dtype=torch.bool, device=device)
        self.done_spec = Composite(
            done=flag, terminated=flag.clone(), truncated=flag.clone(), shape=shape
        )

    def make_expert(self, *, noise: float = 0.0, seed: int = 0) -> TabletopExpert:
        """Make the scripted expert of this environment."""
        return TabletopExpert(self, noise=noise, seed=seed)

    def render(self, size: int = 160) -> Tensor:
        """Render a view for people, uint8 ``[N, 3, size, size]``, with the gripper."""
        return render_scene(self.scene, size)

    def _set_seed(self, seed: int | None) -> None:
        self._generator.manual_seed(torch.seed() % (1 << 31) if seed is None else seed)

    def _reset(
        self,
        tensordict: TensorDictBase | None = None,
        episode_seeds: Tensor | None = None,
        **kwargs: object,
    ) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        reset = env_mask(mask, self.batch_size, self.device)
        if episode_seeds is None:
            episode_seeds = torch.randint(
                1 << 31, self.batch_size, generator=self._generator, device=self.device
            )
        elif (
            episode_seeds.dtype != torch.int64 or episode_seeds.shape != self.batch_size
        ):
            raise ValueError(
                "TabletopEnv: expected episode_seeds int64 "
                f"{list(self.batch_size)}, got {episode_seeds.dtype} "
                f"{list(episode_seeds.shape)}. Pass one seed per environment; those "
                "that are not reset ignore theirs."
            )
        episode_seeds = episode_seeds.to(self.device)  # no transform casts them
        share = self.tasks.count("push") / len(self.tasks)
        fresh = Scene.from_seeds(
            episode_seeds, self.num_blocks, share, self._named_colors
        )
        if "scene" not in self.__dict__ or bool(reset.all()):
            self.scene = fresh
            self._seeds = episode_seeds.clone()
            self._steps = torch.zeros_like(episode_seeds)
            self._image = render_camera(self.scene, self.image_size)
            self._has_moved = torch.zeros_like(reset)
        else:
            self.scene.replace(reset, fresh)
            self._seeds = torch.where(reset, episode_seeds, self._seeds)
            self._steps = self._steps.masked_fill(reset, 0)
            self._render_camera(reset)
        success = torch.zeros(
            (*self.batch_size, 1), dtype=torch.bool, device=self.device
        )
        return self._observe(success)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        check_has_begun(self, "scene" in self.__dict__)
        running = tensordict.get("_step", None)
        if running is not None:
            running = running.view(self.batch_size)
        action = read_action(
            "TabletopEnv", tensordict, self.batch_size, 2, rows=running
        )
        before = Scene(**vars(self.scene))
        self.scene.move(action)
        if running is not None:
            self.scene.replace(~running, before)
        self._steps = self._steps + (1 if running is None else running.long())
        if self.scene.blocks is not before.blocks:
            moved = (self.scene.blocks != before.blocks).flatten(1).any(1)
            self._has_moved = self._has_moved | moved
        success, failure = (flag.unsqueeze(-1) for flag in self.scene.outcome())
        terminated = success | failure
        truncated = (self._steps >= self.max_steps).unsqueeze(-1) & ~terminated
        done = terminated | truncated
        self._render_camera(self._has_moved & self._image_is_needed(tensordict, done))
        out = self._observe(success)
        out.set("reward", success.float())
        out.set("terminated", terminated)
        out.set("truncated", truncated)
        return out.set("done", done)

    def _image_is_needed(self, tensordict: TensorDictBase, done: Tensor) -> Tensor:
        if not self.render_on_demand:
            return torch.ones_like(done[:, 0])
        return observation_is_needed(tensordict, self.batch_size) | done[:, 0]

    def _render_camera(self, mask: Tensor) -> None:
        """Render the images of tables whose blocks moved and whose image is needed."""
        index = mask.nonzero()[:, 0]
        if len(index):
            moved = Scene(**{name: v[index] for name, v in vars(self.scene).items()})
            image = self._image.clone()  # the old one is part of the rollout
            image[index] = render_camera(moved, self.image_size)
            self._image = image
            self._has_moved = self._has_moved & ~mask

    def _observe(self, success: Tensor) -> TensorDict:
        scene = self.scene
        n_colors = len(PALETTE)
        reach_id = scene.target_color
        push_id = scene.target_color * len(PLACES) + scene.place
        if "reach" in self.tasks:
            push_id = push_id + n_colors
        out = TensorDict(
            {
                "observation": {"image": self._image, "state": scene.gripper},
                INSTRUCTION_KEY: self._ids[
                    torch.where(scene.is_push, push_id, reach_id)
                ],
                SUCCESS_KEY: success,
                EPISODE_SEED_KEY: self._seeds,
            },
            self.batch_size,
            device=self.device,
        )
        if self.render_on_demand:
            out.set(IMAGE_IS_STALE_KEY, self._has_moved.unsqueeze(-1))
        return out


def _texts(tasks: Sequence[str], colors: Iterable[str]) -> list[str]:
    """Return all instructions; with all colours, in the order of ``_observe``'s ids."""
    colors = tuple(colors)
    texts = []
    if "reach" in tasks:
        texts += [f"reach the {color} block" for color in colors]
    if "push" in tasks:
        texts += [
            f"push the {color} block to the {place}"
            for color in colors
            for place in PLACES
        ]
    return texts
