"""The embedded default environment: coloured blocks on a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

from torchrl_vla.envs.lazy_rendering import observation_is_needed
from torchrl_vla.envs.tabletop.expert import TabletopExpert
from torchrl_vla.envs.tabletop.scene import MAX_SPEED, PALETTE, PLACES, Scene
from torchrl_vla.envs.tabletop.tabletop_rendering import draw_camera, draw_scene
from torchrl_vla.schema import (
    ACTION_KEY,
    EPISODE_SEED_KEY,
    IMAGE_IS_STALE_KEY,
    INSTRUCTION_KEY,
    SUCCESS_KEY,
    InstructionTable,
    RobotDatasetMetadata,
)

_TASKS = ("reach", "push")
_RATE_HZ = 10.0


class TabletopEnv(EnvBase):
    """Reach or push the block that the instruction names, on ``N`` tables at once.

    The smallest task in which vision, language and action all matter. The image shows
    the blocks and not the gripper, the state holds the gripper and not the blocks, and
    only the instruction says which block: a policy that lacks one of the three falls
    to chance. (One with a memory can do without the state: it finds out where the
    gripper is by driving it into a corner.) To reach, stop over the block (an action
    shorter than one half brings the gripper down); coming down on a wrong block ends
    the episode, and so does pushing against one, so trying them all does not pay.
    Everything is torch, batched, and on one device.

    **Reads** ``action`` float32 ``[N, 2]`` in ``[-1, 1]``: the gripper's displacement,
    where 1 is a tenth of a table unit (the table is ``[-1, 1]`` by ``[-1, 1]``).

    **Writes** ``observation.image`` uint8 ``[N, 3, size, size]``, ``observation.state``
    float32 ``[N, 2]`` (the gripper's x and y, table units), ``language_instruction``
    int64 ``[N]``, ``success`` bool ``[N, 1]``, ``episode_seed`` int64 ``[N]``, reward
    (1 on the successful step, else 0), and ``terminated`` on success or at a
    wrong block, ``truncated`` at ``max_steps``; drawing on demand also
    ``image_is_stale`` bool ``[N, 1]``.

    Args:
        num_envs: ``N``, how many tables.

    Keyword Args:
        tasks: ``"reach"`` ("reach the red block"), ``"push"`` ("push the red block to
            the left"), or both, drawn evenly.
        num_blocks: blocks on a table, each of another colour, 2 to 6.
        colors: of the blocks that an instruction may name; empty = all six. With one,
            ``"reach"`` has a single instruction, for policies that read no text.
        image_size: side of the camera image in pixels.
        max_steps: time limit in steps; None is 40, or 100 with pushing.
        render_on_demand: True = draw only where a policy looks: at resets, in rows that
            are done, and unless ``observation_needed`` is False (bool ``[N, 1]``, which
            the executors write). A row that is not drawn keeps its last image;
            ``image_is_stale`` is True where a block has moved since.
        seed: of the episode seeds that are drawn when a reset names none.
        device: where everything lives.

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
        device: torch.device | str = "cpu",
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
        super().__init__(device=torch.device(device), batch_size=[num_envs])
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
            action_units=f"{MAX_SPEED} table",
            action_reference="delta",
            action_space="end_effector",
            action_low=(-1.0, -1.0),
            action_high=(1.0, 1.0),
            state_names=("x", "y"),
            state_units="table",
            control_frequency_hz=_RATE_HZ,
            cameras=("image",),
        )
        self._ids = InstructionTable(_texts(self.tasks, PALETTE)).ids.to(self.device)
        self._named_colors = None
        if len(self.colors) < len(PALETTE):
            named = [list(PALETTE).index(color) for color in self.colors]
            self._named_colors = torch.tensor(named, device=self.device)
        self._make_specs()
        self._generator = torch.Generator(device=self.device)
        self.set_seed(torch.seed() % (1 << 31) if seed is None else seed)
        self.scene: Scene | None = None

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
        """Draw a view for people, uint8 ``[N, 3, size, size]``, with the gripper."""
        return draw_scene(self.scene, size)

    def _set_seed(self, seed: int | None) -> None:
        self._generator.manual_seed(seed)

    def _reset(
        self,
        tensordict: TensorDictBase | None = None,
        episode_seeds: Tensor | None = None,
        **kwargs: object,
    ) -> TensorDictBase:
        rows = torch.ones(self.batch_size, dtype=torch.bool, device=self.device)
        mask = None if tensordict is None else tensordict.get("_reset", None)
        if mask is not None:
            rows = mask.view(self.batch_size)
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
                f"{list(episode_seeds.shape)}. Pass one seed per row; rows that are "
                "not reset ignore theirs."
            )
        share = self.tasks.count("push") / len(self.tasks)
        fresh = Scene.from_seeds(
            episode_seeds, self.num_blocks, share, self._named_colors
        )
        if self.scene is None or bool(rows.all()):
            self.scene = fresh
            self._seeds = episode_seeds.clone()
            self._steps = torch.zeros_like(episode_seeds)
            self._image = draw_camera(self.scene, self.image_size)
            self._has_moved = torch.zeros_like(rows)
        else:
            self.scene.replace_rows(rows, fresh)
            self._seeds = torch.where(rows, episode_seeds, self._seeds)
            self._steps = self._steps.masked_fill(rows, 0)
            self._draw(rows)
        success = torch.zeros(
            (*self.batch_size, 1), dtype=torch.bool, device=self.device
        )
        return self._observe(success)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        before = Scene(**vars(self.scene))
        self.scene.move(tensordict.get(ACTION_KEY))
        running = tensordict.get("_step", None)
        if running is not None:
            running = running.view(self.batch_size)
            self.scene.replace_rows(~running, before)
        self._steps = self._steps + (1 if running is None else running.long())
        if self.scene.blocks is not before.blocks:
            moved = (self.scene.blocks != before.blocks).flatten(1).any(1)
            self._has_moved = self._has_moved | moved
        success, failure = (flag.unsqueeze(-1) for flag in self.scene.outcome())
        terminated = success | failure
        truncated = (self._steps >= self.max_steps).unsqueeze(-1) & ~terminated
        done = terminated | truncated
        self._draw(self._has_moved & self._is_looked_at(tensordict, done))
        out = self._observe(success)
        out.set("reward", success.float())
        out.set("terminated", terminated)
        out.set("truncated", truncated)
        return out.set("done", done)

    def _is_looked_at(self, tensordict: TensorDictBase, done: Tensor) -> Tensor:
        if not self.render_on_demand:
            return torch.ones_like(done[:, 0])
        return observation_is_needed(tensordict, self.batch_size) | done[:, 0]

    def _draw(self, rows: Tensor) -> None:
        """Redraw tables; on the others nothing moved, or nobody looks."""
        index = rows.nonzero()[:, 0]
        if len(index):
            moved = Scene(**{name: v[index] for name, v in vars(self.scene).items()})
            image = self._image.clone()  # the old one belongs to the rollout
            image[index] = draw_camera(moved, self.image_size)
            self._image = image
            self._has_moved = self._has_moved & ~rows

    def _observe(self, success: Tensor) -> TensorDict:
        scene = self.scene
        n_colors = len(PALETTE)
        reach_row = scene.target_color
        push_row = scene.target_color * len(PLACES) + scene.place
        if "reach" in self.tasks:
            push_row = push_row + n_colors
        out = TensorDict(
            {
                "observation": {"image": self._image, "state": scene.gripper},
                INSTRUCTION_KEY: self._ids[
                    torch.where(scene.is_push, push_row, reach_row)
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
    """All instructions; of all colours in the order that ``_observe`` counts on."""
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
