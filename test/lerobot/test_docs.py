"""The Python of docs/lerobot.md runs, on a checkpoint and a dataset made here."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot_checkpoints import DIFFUSION
from lerobot_folders import edit_info, record, write_folder

from torchrl_vla.data import LeRobotDemonstrations
from torchrl_vla.policies import make_lerobot_policy
from torchrl_vla.policies.lerobot.registry import KINDS, NOT_EXERCISED
from torchrl_vla.schema import FeatureStatistics, RobotDatasetMetadata

pytestmark = pytest.mark.lerobot

PAGE = (Path(__file__).parents[2] / "docs" / "lerobot.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def replace(text: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        assert old in text, f"{old!r} is no longer on the page"
        text = text.replace(old, new)
    return text


@pytest.fixture
def pusht_checkpoint(tmp_path) -> Path:
    statistics = FeatureStatistics.from_samples(512 * torch.rand(20, 2))
    metadata = RobotDatasetMetadata(
        "pusht", action_statistics=statistics, state_statistics=statistics
    )
    config = {
        **{k: v for k, v in DIFFUSION.items() if k != "drop_n_last_frames"},
        "pretrained_backbone_weights": None,
        "do_mask_loss_for_padding": True,
        "n_action_steps": 7,
    }
    policy = make_lerobot_policy(
        "diffusion", metadata, image_sizes={None: (3, 96, 96)}, config=config
    )
    policy.to_folder(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_the_python_of_the_page_runs(pusht_checkpoint, tmp_path, capsys):
    recording = record((9, 12), cameras=("image",))
    images = np.random.default_rng(0).integers(0, 256, (21, 96, 96, 3))
    recording.images["observation.image"] = images.astype(np.uint8)
    columns = recording.columns
    columns["observation.state"] = columns["observation.state"][:, :2].copy()
    folder = write_folder(tmp_path / "dataset", recording)
    info = folder / "meta" / "info.json"
    features = json.loads(info.read_text())["features"]
    features["observation.image"]["shape"] = [96, 96, 3]
    features["observation.state"]["shape"] = [2]
    edit_info(folder, features=features)
    assert len(BLOCKS) == 3
    evaluating = replace(
        BLOCKS[0],
        {
            '"lerobot/diffusion_pusht"': repr(str(pusht_checkpoint)),
            "num_envs=10": "num_envs=2, max_steps=20",
            "episodes=100": "episodes=2",
        },
    )
    training = replace(
        BLOCKS[1],
        {
            '"lerobot/pusht",': f"{str(folder)!r},\n    cache_folder="
            f"{str(tmp_path / 'cache')!r},",
            "batch_size=64": "batch_size=4",
        },
    )
    names: dict = {}
    exec(compile(evaluating, "docs/lerobot.md", "exec"), names)
    assert "over 2 episodes" in capsys.readouterr().out
    exec(compile(training, "docs/lerobot.md", "exec"), names)
    grown = [p for p in names["policy"].parameters() if p.grad is not None]
    assert len(grown) > 100
    assert isinstance(names["replay"].dataset, LeRobotDemonstrations)
    asking = replace(
        BLOCKS[2], {'"lerobot/diffusion_pusht"': repr(str(pusht_checkpoint))}
    )
    names |= {"events": [], "to_my_robot": lambda chunk, contract: chunk}
    names["observation"] = names["env"].reset()[0]
    exec(compile(asking, "docs/lerobot.md", "exec"), names)
    assert names["result"].loader_mode == "typed"
    assert len(names["events"]) >= 2


def test_the_table_lists_every_policy_that_lerobot_registers():
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies import factory

    assert factory  # registers them
    table = PAGE.split("## Which policies")[1].split("##")[0]
    first_cells = re.findall(r"^\|([^|]*)\|", table, re.MULTILINE)
    rows = re.findall(r"`(\w+)`", " ".join(first_cells))
    choices = PreTrainedConfig.get_known_choices()
    registered = {n for n, k in choices.items() if k.__module__.startswith("lerobot.")}
    assert registered <= set(rows)
    assert set(rows) == set(KINDS) | set(NOT_EXERCISED)
