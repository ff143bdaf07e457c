from __future__ import annotations

import copy
import json
import math
import re
from dataclasses import replace

import lerobot_checkpoints
import lerobot_vla_backbones as backbones
import pytest
import torch
from sending import Sending
from tensordict import NonTensorStack
from torch.nn.functional import interpolate
from torchrl.envs import Compose

from torchrl_vla.data import collect, write_lerobot
from torchrl_vla.diagnosis import diagnose, inspect_path
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.execution import (
    ExecutorKeys,
    MultiStepActorWrapper,
)
from torchrl_vla.policies import LeRobotPipeline, LeRobotPolicyWrapper
from torchrl_vla.policies.lerobot.load.robot_fit import (
    lerobot_statistics,
    replace_statistics,
)
from torchrl_vla.recipes import fit_lerobot_policy, open_dataset, save_checkpoint
from torchrl_vla.recipes.lerobot_backbones import make_tiny_pi0, make_tiny_smolvla

pytestmark = [
    pytest.mark.lerobot,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

IMAGE, STATE = ("observation", "image"), ("observation", "state")
ACT = {**lerobot_checkpoints.ACT, "chunk_size": 3, "n_action_steps": 3}
DIFFUSION = {
    "n_obs_steps": 2,
    "horizon": 8,
    "n_action_steps": 4,
    "down_dims": (8, 16),
    "num_train_timesteps": 4,
    "crop_shape": None,
    "pretrained_backbone_weights": None,
    "use_group_norm": True,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    env = TabletopEnv(4, image_size=32)
    folder = tmp_path_factory.mktemp("reach") / "dataset"
    return collect(env, env.make_expert(), 6, folder=folder, progress=False)


@pytest.fixture(scope="module")
def act(data):
    return fit_lerobot_policy("act", data, config=ACT)


def observing(key, change):
    return lambda act, data: {
        "policy": act,
        "dataset": data,
        "observe": lambda td: td.set(key, change(td[key])),
    }


def sending(change):
    def plant(act, data):
        policy = Sending(act, change)
        executor = MultiStepActorWrapper(policy, keys=ExecutorKeys())
        return {"policy": executor, "dataset": data}

    return plant


def other_statistics(act, data):
    """Train with the dataset's statistics, act with others."""
    stats = lerobot_statistics(data.metadata)
    stats["action"]["std"] *= 1.5
    pipeline = act.pipeline
    before, after = copy.deepcopy((pipeline.preprocessor, pipeline.postprocessor))
    replace_statistics(before, after, stats)
    wrapper = LeRobotPolicyWrapper(act.policy, pipeline=LeRobotPipeline(before, after))
    return {"policy": wrapper, "dataset": data}


def declared(**fields):
    def plant(act, data):
        other = copy.copy(data)
        other.metadata = replace(data.metadata, **fields)
        return {"policy": act, "dataset": other}

    return plant


FAULTS = {
    "wrong image size": (
        observing(IMAGE, lambda x: interpolate(x.float(), size=48).to(torch.uint8)),
        "image size",
        r"\[3, 32, 32\] in training and \[3, 48, 48\] in acting",
    ),
    "float image 0..255": (
        observing(IMAGE, lambda x: x.float()),
        "image range",
        r"float32 in \d+\.\.2\d\d",
    ),
    "BGR": (observing(IMAGE, lambda x: x.flip(-3)), "channel order", "BGR for RGB"),
    "other statistics": (other_statistics, "normalization", r"1\.5 x"),
    "cumulated actions": (
        sending(lambda x: x.cumsum(-2)),
        "action representation",
        r"sums of the actions \(absolute\)",
    ),
    "state in degrees": (
        observing(STATE, lambda x: x * 180 / math.pi),
        "units",
        "degrees against radians",
    ),
    "actions in degrees": (
        sending(lambda x: x * 180 / math.pi),
        "units",
        "degrees against radians",
    ),
    "cut chunk": (
        sending(lambda x: x[..., :2, :]),
        "chunk length",
        "policy 3, training 3, acting 2",
    ),
}


def test_nothing_is_found_on_acts_clean_chain(act, data):
    diagnosis = diagnose(act, data)
    assert diagnosis.findings == ()
    assert diagnosis.frames >= 12
    assert diagnosis.error is not None


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_planted_around_act_is_named(act, data, fault):
    plant, stage, message = FAULTS[fault]
    diagnosis = diagnose(**plant(act, data))
    assert diagnosis.stages == (stage,), str(diagnosis)
    assert re.search(message, diagnosis.first.message), diagnosis.first


def test_a_checkpoint_of_act_is_compared_with_its_dataset(act, data, tmp_path):
    folder = save_checkpoint(tmp_path / "act", act, None, data.metadata)
    env = TabletopEnv(4, image_size=32, seed=3)
    assert diagnose(folder, data, env).findings == ()
    for fields, stage in (
        ({"control_frequency_hz": 30.0}, "control rate"),
        ({"action_units": ("deg", "deg")}, "units"),
        ({"action_reference": ("absolute",) * 2}, "action representation"),
    ):
        other = copy.copy(data)
        other.metadata = replace(data.metadata, **fields)
        assert diagnose(folder, other).stages == (stage,)


def test_processors_with_the_statistics_of_another_dataset_are_named(act, data):
    stats = data.metadata.action_statistics
    moved = replace(stats, mean=stats.mean + 0.25, std=stats.std * 2)
    other = copy.copy(data)
    other.metadata = replace(data.metadata, action_statistics=moved)
    diagnosis = diagnose(act, other)
    assert diagnosis.stages == ("normalization",)
    assert "acting = dx: 0.5 x" in diagnosis.first.message


def test_a_policy_with_a_history_is_fed_with_it(data):
    policy = fit_lerobot_policy("diffusion", data, config=DIFFUSION)
    assert policy.history_size == 2
    assert diagnose(policy, data).findings == ()
    policy.make_environment_transform = Compose
    assert diagnose(policy, data).stages == ("observation history",)


def test_an_act_that_averages_its_chunks_is_clean_too(data, tmp_path):
    policy = fit_lerobot_policy("act", data, config=ACT)
    folder = save_checkpoint(tmp_path / "act", policy, None, data.metadata)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config |= {"temporal_ensemble_coeff": 0.01, "n_action_steps": 1}
    path.write_text(json.dumps(config))
    assert diagnose(folder, data).findings == ()


def test_a_lerobot_dataset_and_its_environment_are_clean(
    act, data, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_lerobot(data, tmp_path / "reach", images="png", progress=False)
    recorded = open_dataset(folder)
    policy = fit_lerobot_policy("act", recorded, config=ACT)
    env = TabletopEnv(4, image_size=32, seed=3)
    assert diagnose(policy, recorded, env).findings == ()


def test_a_checkpoint_of_act_is_inspected(act, data, tmp_path):
    folder = save_checkpoint(tmp_path / "act", act, None, data.metadata)
    found = inspect_path(folder)
    assert (found.kind, found.facts["type"]) == ("LeRobot checkpoint", "act")
    assert found.exit_code == 0
    (folder / "model.safetensors").unlink()
    found = inspect_path(folder)
    assert found.exit_code == 1
    assert "model.safetensors" in str(found)


# LeRobot 0.4.4 has a pi0 that wants a fork of transformers.
VLAS = ["smolvla", "pi0"] if "pi0" in backbones.here() else ["smolvla"]


@pytest.fixture(scope="module", params=VLAS)
def vla(request, data):
    make = {"smolvla": make_tiny_smolvla, "pi0": make_tiny_pi0}[request.param]
    return make(data)


def in_words(change):
    def observe(tensordict, table):
        texts = table.decode(tensordict["language_instruction"])
        return NonTensorStack(*map(change, texts))

    return observe


INSTRUCTIONS = {
    "another text": (in_words(lambda text: "do it"), "is 'do it' in acting"),
    "no text": (in_words(lambda text: ""), "is '' in acting"),
    "capitals": (in_words(str.upper), "is 'REACH THE .* BLOCK' in acting"),
    "a newline behind": (in_words(lambda text: f"{text}\n"), r"block\\n' in acting"),
    "cut off": (in_words(lambda text: text[:9]), "is 'reach the' in acting"),
    "the text of another episode": (
        lambda tensordict, table: tensordict["language_instruction"].roll(1),
        "'reach the .* block' in training is 'reach the .* block' in acting",
    ),
}


def test_nothing_is_found_on_the_clean_chain_of_a_vla(vla, data):
    diagnosis = diagnose(vla, data)
    assert diagnosis.findings == (), str(diagnosis)
    assert "instruction text" not in diagnosis.without_data


@pytest.mark.parametrize("fault", INSTRUCTIONS)
def test_a_fault_of_a_vlas_instruction_is_named(vla, data, fault):
    change, message = INSTRUCTIONS[fault]

    def observe(tensordict):
        texts = change(tensordict, data.instructions)
        return tensordict.set("language_instruction", texts)

    diagnosis = diagnose(vla, data, observe=observe)
    assert diagnosis.stages == ("instruction text",), str(diagnosis)
    assert re.search(message, diagnosis.first.message), diagnosis.first
