"""Damaged checkpoints of LeRobot's end in errors of ours."""

from __future__ import annotations

import os
import shutil

import pytest
from mutations import Outcomes, damage_files, damaged_bytes, damaged_json

from torchrl_vla.policies import load_policy
from torchrl_vla.schema import SchemaError

pytestmark = pytest.mark.lerobot


@pytest.fixture
def folder(checkpoint, tmp_path):
    root = tmp_path / "deep" / "root"
    shutil.copytree(checkpoint("act").folder, root)
    return root


def test_damaged_files_of_a_checkpoint(folder):
    def read(seed):
        load_policy(folder)

    read(0)
    outcomes = Outcomes(folder.parent)
    damage = {"*.json": damaged_json, "*.safetensors": damaged_bytes}
    damage_files(folder, damage, 80, read, outcomes)
    outcomes.check(80, refused=30)


@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
def test_weights_that_were_cut_off_are_refused(folder, part):
    path = folder / "model.safetensors"
    os.truncate(path, int(path.stat().st_size * part))
    with pytest.raises(SchemaError, match=r"in '.*model\.safetensors', got .* cut"):
        load_policy(folder)
