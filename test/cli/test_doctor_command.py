from __future__ import annotations

import json

import pytest

from torchrl_vla.cli.main import main
from torchrl_vla.data import collect
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.recipes import make_policy, save_checkpoint
from torchrl_vla.spaces import ModelSpace


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("doctor")
    env = TabletopEnv(4, image_size=16)
    data = collect(env, env.make_expert(), 4, folder=root / "data", progress=False)
    policy = make_policy(data, chunk_size=3, hidden=8, depth=1)
    save_checkpoint(root / "policy", policy, ModelSpace(data.metadata))
    return ["--policy", str(root / "policy"), "--dataset", str(root / "data")]


def to_bgr(observation):
    image = ("observation", "image")
    return observation.set(image, observation[image].flip(-3))


def test_a_clean_chain_exits_with_0(folders, capsys):
    env = ["--env", "tabletop", "--image-size", "16"]
    assert main(["doctor", *folders, *env]) == 0
    out = capsys.readouterr().out
    assert "No difference at any of 14 stages." in out
    assert "open-loop error on" in out
    assert "a step at 10 Hz has 100.0 ms" in out


def test_a_difference_exits_with_1_and_is_in_the_json(folders, tmp_path, capsys):
    path = tmp_path / "parity.json"
    observe = ["--observe", f"{__name__}:to_bgr", "--json", str(path)]
    assert main(["doctor", *folders, *observe]) == 1
    assert "They part at: channel order" in capsys.readouterr().out
    (finding,) = json.loads(path.read_text())["findings"]
    assert finding["stage"] == "channel order"


def test_an_environment_of_another_size_exits_with_1(folders, capsys):
    env = ["--env", "tabletop", "--image-size", "24"]
    assert main(["doctor", *folders, *env]) == 1
    assert "They part at: image size" in capsys.readouterr().out


def test_what_cannot_be_read_exits_with_2(folders, tmp_path, capsys):
    missing = ["--policy", str(tmp_path / "nothing"), *folders[2:]]
    assert main(["doctor", *missing]) == 2
    err = capsys.readouterr().err
    assert err.startswith("torchrl-vla doctor: load_executor: expected a checkpoint")
    assert main(["doctor", *folders[:2], "--dataset", str(tmp_path / "none")]) == 2
    assert "expected a folder at" in capsys.readouterr().err
