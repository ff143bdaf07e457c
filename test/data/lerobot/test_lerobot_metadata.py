"""What LeRobot has no field for is kept beside its files."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from lerobot_folders import edit_info, record, write_folder
from lerobot_steps import METADATA, TABLE, make_frames

from torchrl_vla.data import LeRobotDemonstrations, write_lerobot
from torchrl_vla.schema import SchemaError

DECLARED = replace(METADATA, action_units="m", action_reference="delta")


@pytest.fixture
def folder(tmp_path):
    return write_lerobot(
        make_frames((3, 4)),
        tmp_path / "dataset",
        metadata=DECLARED,
        instructions=TABLE,
        images="png",
        progress=False,
    )


def read(folder, tmp_path):
    cache = tmp_path / "cache"
    return LeRobotDemonstrations.from_folder(folder, cache_folder=cache).metadata


def test_units_and_conventions_come_back_and_statistics_are_the_datas(folder, tmp_path):
    metadata = read(folder, tmp_path)
    assert metadata.action_units == DECLARED.action_units
    assert metadata.action_reference == DECLARED.action_reference
    assert metadata.dataset_id == DECLARED.dataset_id
    assert metadata.action_statistics.count == 7
    text = (folder / "meta" / "torchrl_vla.json").read_text()
    assert json.loads(text)["action_statistics"] is None


def test_a_declaration_that_the_dataset_contradicts_is_refused(folder, tmp_path):
    rate = json.loads((folder / "meta" / "info.json").read_text())["fps"]
    path = folder / "meta" / "torchrl_vla.json"
    path.write_text(replace(DECLARED, control_frequency_hz=2.0 * rate).to_json())
    with pytest.raises(SchemaError, match=r"to agree with 'meta/info\.json'.*delete"):
        read(folder, tmp_path)


def test_lerobots_placeholders_declare_nothing(tmp_path):
    folder = write_folder(tmp_path / "dataset", record((3,)))
    features = json.loads((folder / "meta" / "info.json").read_text())["features"]
    features["action"]["names"] = {"motors": ["motor_0", "motor_1"]}
    edit_info(folder, features=features, robot_type="unknown")
    metadata = read(folder, tmp_path)
    assert metadata.embodiment_id is None
    assert metadata.action_names is None
