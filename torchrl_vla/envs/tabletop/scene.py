"""State and motion of the tables."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchrl_vla._internal.env_masks import where_env
from torchrl_vla.rollout import uniforms

#: Colour names and their RGB values.
PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (214, 48, 49),
    "green": (39, 174, 96),
    "blue": (41, 98, 217),
    "yellow": (241, 196, 15),
    "purple": (142, 68, 173),
    "orange": (230, 126, 34),
}

#: Named places: unit vectors from the middle of the table, x right and y up.
PLACES: dict[str, tuple[float, float]] = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "top": (0.0, 1.0),
    "bottom": (0.0, -1.0),
}

BLOCK_RADIUS = 0.11
#: Centre to centre distance at which the gripper touches a block.
CONTACT = 0.15
#: Distance that a full action moves the gripper in one step.
MAX_SPEED = 0.1
#: An action shorter than this lowers the gripper onto what is below it.
STOPPING = 0.5
#: A block is at a named place when its centre is this far out.
PLACE_DISTANCE = 0.8

_GRID = 0.6
_JITTER = 0.1


@dataclass
class Scene:
    """The state of ``N`` tables; lengths in table units (the table is ``[-1, 1]^2``).

    Args:
        gripper: ``[N, 2]``.
        speed: length of the last action, ``[N]``.
        blocks: centres, ``[N, M, 2]``.
        colors: index in ``PALETTE``, int64 ``[N, M]``, all different on a table.
        target: index of the named block, int64 ``[N]``.
        place: index in ``PLACES``, int64 ``[N]``; meaningful where ``is_push``.
        is_push: bool ``[N]``, True = push the block to the place, False = reach it.
    """

    gripper: Tensor
    speed: Tensor
    blocks: Tensor
    colors: Tensor
    target: Tensor
    place: Tensor
    is_push: Tensor

    @classmethod
    def from_seeds(
        cls,
        seeds: Tensor,
        num_blocks: int,
        push_share: float,
        named: Tensor | None = None,
    ) -> Scene:
        """Lay the tables that int64 ``seeds`` ``[N]`` stand for.

        Blocks and gripper start in different cells of a three by three grid, off its
        middle by a jitter, so nothing touches at the start. The named block has one of
        the colours ``named``, int64 ``[C]``; None = any.
        """
        n_colors = len(PALETTE)
        numbers = uniforms(seeds, 9 + 18 + n_colors + 3)
        order, jitter, hues, rest = numbers.split([9, 18, n_colors, 3], -1)
        cells = order.argsort(-1)[:, : num_blocks + 1]
        middle = torch.stack([cells % 3 - 1, cells // 3 - 1], -1) * _GRID
        offset = (jitter.unflatten(-1, (9, 2))[:, : num_blocks + 1] * 2 - 1) * _JITTER
        positions = middle + offset
        colors, which = hues.argsort(-1), rest[:, 0] * num_blocks
        target = which.long()
        if named is not None:  # by exchange with whatever has that colour
            wanted = named[((which - target) * len(named)).long()][:, None]
            other = colors.gather(1, target[:, None])
            colors = torch.where(colors == wanted, other, colors)
            colors = colors.scatter(1, target[:, None], wanted)
        return cls(
            gripper=positions[:, 0],
            speed=torch.ones_like(positions[:, 0, 0]),
            blocks=positions[:, 1:],
            colors=colors[:, :num_blocks],
            target=target,
            place=(rest[:, 1] * len(PLACES)).long(),
            is_push=rest[:, 2] < push_share,
        )

    def replace(self, mask: Tensor, other: Scene) -> None:
        """Take ``other``'s tables where ``mask`` (bool ``[N]``) is True."""
        theirs = vars(other)
        for name, ours in vars(self).items():
            setattr(self, name, where_env(mask, theirs[name], ours))

    @property
    def target_block(self) -> Tensor:
        """Centre of the named block, ``[N, 2]``."""
        return self.blocks.gather(1, self.target.view(-1, 1, 1).expand(-1, 1, 2))[:, 0]

    @property
    def target_color(self) -> Tensor:
        """Index in ``PALETTE`` of the named block's colour, int64 ``[N]``."""
        return self.colors.gather(1, self.target.unsqueeze(-1))[:, 0]

    @property
    def place_direction(self) -> Tensor:
        """Unit vector towards the named place, ``[N, 2]``."""
        table = torch.tensor(list(PLACES.values()), device=self.place.device)
        return table[self.place]

    def distances(self) -> Tensor:
        """From the gripper to each block's centre, ``[N, M]``."""
        return (self.blocks - self.gripper.unsqueeze(1)).norm(dim=-1)

    def move(self, action: Tensor) -> None:
        """Move the gripper by ``action * MAX_SPEED``; in push tasks, push with it.

        Pushing is quasi-static: a block moves along the line from the gripper (or from
        the block that pushes it) and stops with it. Only the named block of a push task
        moves; touching another ends the episode.
        """
        action = action.clamp(-1, 1)
        self.speed = action.norm(dim=-1)
        self.gripper = (self.gripper + action * MAX_SPEED).clamp(-1, 1)
        if not bool(self.is_push.any()):
            return
        index = torch.arange(self.blocks.shape[1], device=self.target.device)
        is_target = (index == self.target.unsqueeze(-1)) & self.is_push.unsqueeze(-1)
        pushed = _give_way(self.blocks, self.gripper.unsqueeze(1), CONTACT)
        blocks = torch.where(is_target.unsqueeze(-1), pushed, self.blocks)
        mover = torch.where(is_target.unsqueeze(-1), blocks, 0.0).sum(1, keepdim=True)
        others = _give_way(blocks, mover, 2 * BLOCK_RADIUS)
        gives_way = self.is_push.unsqueeze(-1) & ~is_target
        self.blocks = torch.where(gives_way.unsqueeze(-1), others, blocks).clamp(-1, 1)

    def outcome(self) -> tuple[Tensor, Tensor]:
        """Return ``(success, failure)``, bool ``[N]`` each.

        To reach, the gripper travels above the table and comes down where it stops:
        over the named block is success, over another failure. To push, it stays down:
        the named block at the named place is success, contact with another failure.
        """
        distances = self.distances()
        down = (distances < BLOCK_RADIUS) & (self.speed < STOPPING).unsqueeze(-1)
        touching = torch.where(self.is_push.unsqueeze(-1), distances < CONTACT, down)
        on_target = touching.gather(1, self.target.unsqueeze(-1))[:, 0]
        on_another = touching.sum(-1) > on_target.long()
        at_place = (self.target_block * self.place_direction).sum(-1) > PLACE_DISTANCE
        success = torch.where(self.is_push, at_place, on_target)
        return success, on_another & ~success


def _give_way(blocks: Tensor, pusher: Tensor, distance: float) -> Tensor:
    """Move each block out to ``distance`` from the pusher where it is closer."""
    offset = blocks - pusher
    gap = offset.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    return torch.where(gap < distance, pusher + offset / gap * distance, blocks)
