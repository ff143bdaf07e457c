from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from torchrl_vla.envs.known_presets import PRESETS, PresetName
from torchrl_vla.envs.libero import LiberoEnv, LiberoProtocol
from torchrl_vla.recipes import make_environment
from torchrl_vla.schema import IncompatibleMetadataError, check_robot_metadata


def test_every_name_has_its_preset():
    assert set(PRESETS) == set(get_args(PresetName))


@pytest.mark.libero
@pytest.mark.parametrize(
    ("preset", "suite", "max_steps"),
    [
        ("lerobot-libero", "spatial", 280),
        ("lerobot-libero", "libero_10", 520),
        ("openpi-libero", "spatial", 220),
        ("openpi-libero", "goal_swap", 300),
    ],
)
def test_a_preset_is_what_the_project_evaluates_with(preset, suite, max_steps):
    pytest.importorskip("libero")
    env = make_environment(f"libero/{suite}/0", num_envs=1, preset=preset)
    assert env.max_steps == max_steps
    assert env.protocol.settle_steps == 10
    assert env.protocol.image_orientation == "mirrored"
    assert env.metadata.state_dim == 8
    images = env.observation_spec["observation", "image"]
    assert {name: images[name].shape[1:] for name in list(images.keys())} == {
        "agentview": (3, 256, 256),
        "wrist": (3, 256, 256),
    }
    assert PRESETS[preset].rename_map.keys() == set(images.keys())
    env.close()


@pytest.mark.libero
def test_a_size_of_one_s_own_is_kept():
    pytest.importorskip("libero")
    options = {"num_envs": 1, "image_size": 64, "preset": "lerobot-libero"}
    env = make_environment("libero/object/0", **options)
    assert env.observation_spec["observation", "image", "wrist"].shape[-1] == 64
    env.close()


def test_a_preset_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match=r"preset of .*got 'lerobot-liber'.*Did you"):
        make_environment("libero/object", preset="lerobot-liber")
    with pytest.raises(ValueError, match="expected the environment 'libero'"):
        make_environment("metaworld/reach", preset="openpi-libero")


@pytest.mark.libero
def test_a_policy_of_another_state_layout_does_not_fit_a_preset():
    pytest.importorskip("libero")
    quaternion = LiberoProtocol(rotation="quaternion_xyzw")
    other = LiberoEnv("object", [0], cameras=(), protocol=quaternion)
    env = make_environment("libero/object/0", num_envs=1, preset="lerobot-libero")
    trained = replace(other.metadata, cameras=(), image_sizes=None)
    with pytest.raises(IncompatibleMetadataError, match=r"state.*hand_quaternion"):
        check_robot_metadata("evaluate", trained, env.metadata)
    env.close()
    other.close()
