"""Rendering of tables with tensor operations, on their device."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from torchrl_vla.envs.tabletop.scene import BLOCK_RADIUS, CONTACT, PALETTE, Scene

_TABLE_COLOR = (206, 200, 190)
_GRIPPER_COLOR = (40, 44, 52)
_HIGHLIGHT_COLOR = (255, 255, 255)


def render_camera(scene: Scene, size: int) -> Tensor:
    """Render the camera image: the blocks, without the gripper.

    The camera is below a glass table and does not see the arm above it. So the image
    alone has the blocks' positions, and the state alone the gripper's.

    Args:
        scene: ``N`` tables.
        size: side of the image in pixels.

    Returns:
        uint8 RGB ``[N, 3, size, size]``; up is ``+y``.
    """
    image = _framebuffer(len(scene.gripper), size, scene.gripper.device)
    return _to_uint8(_render_blocks(image, scene, size))


def render_scene(scene: Scene, size: int) -> Tensor:
    """Render a view for people: blocks, gripper, and a ring around the named block."""
    image = _framebuffer(len(scene.gripper), size, scene.gripper.device)
    ring = _disc(scene.target_block, CONTACT + 0.03, size)
    image = _blend(image, ring, _HIGHLIGHT_COLOR)
    image = _render_blocks(image, scene, size)
    image = _blend(image, _disc(scene.gripper, 0.05, size), _GRIPPER_COLOR)
    return _to_uint8(image)


def _render_blocks(image: Tensor, scene: Scene, size: int) -> Tensor:
    palette = torch.tensor(list(PALETTE.values()), dtype=torch.float32)
    colors = palette.to(image.device)[scene.colors]  # [N, M, 3]
    for block in range(scene.blocks.shape[1]):
        cover = _disc(scene.blocks[:, block], BLOCK_RADIUS, size)
        image = torch.lerp(image, colors[:, block, :, None, None], cover)
    return image


def _disc(center: Tensor, radius: float, size: int) -> Tensor:
    """Return the covered share of each pixel, ``[N, 1, size, size]``, of a disc."""
    x, y = _pixel_grid(size, center.device)
    dx = x - center[:, 0, None, None, None]
    dy = y - center[:, 1, None, None, None]
    outside = (dx.square() + dy.square()).sqrt_() - radius
    pixel = 2.0 / size
    return (0.5 - outside / pixel).clamp_(0.0, 1.0)


@lru_cache(maxsize=8)
def _pixel_grid(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Table coordinates of the pixel centres: x ``[size]``, y ``[size, 1]``."""
    line = (torch.arange(size, device=device) + 0.5) * (2.0 / size) - 1.0
    return line, -line.unsqueeze(-1)


def _framebuffer(n: int, size: int, device: torch.device) -> Tensor:
    color = torch.tensor(_TABLE_COLOR, dtype=torch.float32, device=device)
    return color.view(1, 3, 1, 1).expand(n, 3, size, size)


def _blend(image: Tensor, cover: Tensor, color: tuple[int, int, int]) -> Tensor:
    fill = torch.tensor(color, dtype=torch.float32, device=image.device)
    return torch.lerp(image, fill.view(1, 3, 1, 1), cover)


def _to_uint8(image: Tensor) -> Tensor:
    return image.round().to(torch.uint8)
