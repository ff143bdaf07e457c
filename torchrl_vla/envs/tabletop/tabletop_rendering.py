"""Draw tables as images with tensor operations, on the device they live on."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from torchrl_vla.envs.tabletop.scene import BLOCK_RADIUS, CONTACT, PALETTE, Scene

_TABLE_COLOR = (206, 200, 190)
_GRIPPER_COLOR = (40, 44, 52)
_HIGHLIGHT_COLOR = (255, 255, 255)


def draw_camera(scene: Scene, size: int) -> Tensor:
    """Draw what the camera sees: the blocks, and not the gripper.

    The camera looks up through a glass table, so the arm above it is out of sight.
    That is what makes the task need all three inputs: where the blocks are is only in
    the image, where the gripper is only in the state.

    Args:
        scene: ``N`` tables.
        size: side of the image in pixels.

    Returns:
        uint8 RGB ``[N, 3, size, size]``; up is ``+y``.
    """
    canvas = _framebuffer(len(scene.gripper), size, scene.gripper.device)
    return _to_uint8(_draw_blocks(canvas, scene, size))


def draw_scene(scene: Scene, size: int) -> Tensor:
    """Draw a view for people: blocks, gripper, and a ring around the named block."""
    canvas = _framebuffer(len(scene.gripper), size, scene.gripper.device)
    ring = _disc(scene.target_block, CONTACT + 0.03, size)
    canvas = _blend(canvas, ring, _HIGHLIGHT_COLOR)
    canvas = _draw_blocks(canvas, scene, size)
    canvas = _blend(canvas, _disc(scene.gripper, 0.05, size), _GRIPPER_COLOR)
    return _to_uint8(canvas)


def _draw_blocks(canvas: Tensor, scene: Scene, size: int) -> Tensor:
    palette = torch.tensor(list(PALETTE.values()), dtype=torch.float32)
    colors = palette.to(canvas.device)[scene.colors]  # [N, M, 3]
    for block in range(scene.blocks.shape[1]):
        cover = _disc(scene.blocks[:, block], BLOCK_RADIUS, size)
        canvas = torch.lerp(canvas, colors[:, block, :, None, None], cover)
    return canvas


def _disc(center: Tensor, radius: float, size: int) -> Tensor:
    """How much of each pixel a disc covers, ``[N, 1, size, size]`` in ``[0, 1]``."""
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


def _blend(canvas: Tensor, cover: Tensor, color: tuple[int, int, int]) -> Tensor:
    paint = torch.tensor(color, dtype=torch.float32, device=canvas.device)
    return torch.lerp(canvas, paint.view(1, 3, 1, 1), cover)


def _to_uint8(canvas: Tensor) -> Tensor:
    return canvas.round().to(torch.uint8)
