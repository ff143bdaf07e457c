"""Presets with a checkpoint of LeRobot's, in a stand-in for LIBERO's cameras."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict
from lerobot_checkpoints import ACT

from torchrl_vla.cli.main import main
from torchrl_vla.envs import GymnasiumEnv, SimulatorInterface, SimulatorKeys
from torchrl_vla.envs.known_environments import ENVIRONMENTS, KnownEnvironment
from torchrl_vla.envs.known_presets import PRESETS
from torchrl_vla.evaluation import EvaluationResult

pytestmark = pytest.mark.lerobot

SIDE, STATE = 32, 8
CAMERAS = ("agentview", "wrist")


class StandIn(gymnasium.Env):
    """Two images and the state of a preset; solved in the third step."""

    def __init__(self, numbers):
        self.numbers = numbers
        self.action_space = Box(-1.0, 1.0, (7,), np.float32)
        image = Box(0, 255, (SIDE, SIDE, 3), np.uint8)
        state = Box(-np.inf, np.inf, (numbers,), np.float32)
        self.observation_space = Dict(state=state, **dict.fromkeys(CAMERAS, image))

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return self.observe(), {}

    def step(self, action):
        self.steps += 1
        done = self.steps == 3
        return self.observe(), 0.0, done, False, {"success": done}

    def observe(self):
        image = np.full((SIDE, SIDE, 3), self.steps, np.uint8)
        return {
            "state": np.ones(self.numbers, np.float32),
            **dict.fromkeys(CAMERAS, image),
        }


def make_stand_in(tasks, *, preset, num_envs, seed, **options):
    rotation = PRESETS[preset].protocol.rotation
    numbers = STATE if rotation == "axis_angle" else STATE + 1
    keys = SimulatorKeys(state=("state",), images={name: name for name in CAMERAS})
    return GymnasiumEnv(
        lambda: StandIn(numbers),
        SimulatorInterface(keys, "success"),
        instructions="pick it up",
        num_envs=num_envs,
        seed=seed,
    )


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.factory import (
        get_policy_class,
        make_policy_config,
        make_pre_post_processors,
    )

    inputs = {"observation.state": PolicyFeature(FeatureType.STATE, (STATE,))}
    for name in ("image", "image2"):
        camera = PolicyFeature(FeatureType.VISUAL, (3, SIDE, SIDE))
        inputs[f"observation.images.{name}"] = camera
    config = make_policy_config(
        "act",
        input_features=inputs,
        output_features={"action": PolicyFeature(FeatureType.ACTION, (7,))},
        device="cpu",
        push_to_hub=False,
        normalization_mapping={},
        **ACT,
    )
    policy = get_policy_class("act")(config).eval()
    folder = tmp_path / "pretrained_model"
    policy.save_pretrained(folder)
    for processor in make_pre_post_processors(config, dataset_stats=None):
        processor.save_pretrained(folder)
    known = KnownEnvironment(maker=f"{__name__}:make_stand_in", tasks=("object",))
    monkeypatch.setitem(ENVIRONMENTS, "libero", known)
    where = ["--policy", str(folder), "--env", "libero/object", "--episodes", "3"]
    return lambda *more: main(["evaluate", *where, "--num-envs", "2", *more])


def test_a_checkpoint_of_lerobot_is_evaluated_without_code(evaluate, tmp_path):
    out = tmp_path / "result.json"
    assert evaluate("--preset", "lerobot-libero", "--json", str(out)) == 0
    result = EvaluationResult.from_json(out)
    assert result.success_rate == 1.0
    assert [episode.length for episode in result.episodes] == [3, 3, 3]
    assert result.provenance["command"]["env"]["preset"] == "lerobot-libero"


def test_another_project_s_preset_is_refused_by_the_cameras(evaluate, capsys):
    assert evaluate("--preset", "openpi-libero") == 1
    err = capsys.readouterr().err
    assert "right_wrist_0_rgb" in err
    assert "image2" in err


def test_another_layout_of_the_state_is_refused(evaluate, monkeypatch, capsys):
    from dataclasses import replace

    preset = PRESETS["lerobot-libero"]
    protocol = replace(preset.protocol, rotation="quaternion_xyzw")
    other = replace(preset, protocol=protocol)
    monkeypatch.setitem(PRESETS, "lerobot-libero", other)
    assert evaluate("--preset", "lerobot-libero") == 1
    assert "state_dim: 8 against 9" in capsys.readouterr().err
