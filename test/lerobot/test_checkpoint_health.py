"""The health check against real checkpoints and the loading that it stands for."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import lerobot_vla_backbones as backbones
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lerobot_checkpoints import RECIPES

from torchrl_vla.policies import (
    LeRobotPolicyWrapper,
    LeRobotSettings,
    check_lerobot_health,
)
from torchrl_vla.schema import SchemaError, VLAError

pytestmark = pytest.mark.lerobot


@pytest.fixture
def changed(checkpoint, tmp_path):
    """Return a copy of a checkpoint whose configuration has other fields."""

    def change(name, **fields):
        folder = tmp_path / "copy"
        shutil.copytree(checkpoint(name).folder, folder)
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))
        return folder

    return change


@pytest.fixture
def checkpoint_folder(checkpoint):
    return checkpoint("act").folder


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_checkpoints_that_load_are_healthy(name, checkpoint):
    folder = checkpoint(name).folder
    report = check_lerobot_health(folder, settings=LeRobotSettings(), load=True)
    assert report.problems == ()


@pytest.mark.parametrize("name", backbones.here())
def test_larger_checkpoints_that_load_are_healthy(name, tmp_path):
    with backbones.narrow_gemma():
        folder = backbones.make_checkpoint(name, tmp_path).folder
        report = check_lerobot_health(folder, settings=LeRobotSettings())
    assert report.problems == ()


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("act", {"n_action_steps": 11}),
        ("act", {"n_action_steps": 0}),
        ("act", {"n_obs_steps": 2}),
        ("diffusion", {"n_action_steps": 8}),
        ("diffusion", {"num_inference_steps": 1000}),
        ("vqbet", {"action_chunk_size": 0}),
        ("smolvla", {"n_action_steps": 11}),
        ("smolvla", {"num_steps": 0}),
        ("tdmpc-steps", {"n_action_steps": 99}),
    ],
)
def test_illegal_horizons_fail_at_load_and_in_the_health_check(name, fields, changed):
    folder = changed(name, **fields)
    assert not check_lerobot_health(folder, settings=LeRobotSettings()).ok
    with pytest.raises(SchemaError, match="from_pretrained: expected"):
        LeRobotPolicyWrapper.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "overrides", "problem"),
    [
        ("act", {"n_action_steps": 11}, "11.*10"),
        ("act", {"n_action_steps": -1}, "n_action_steps >= 1, got -1"),
        ("diffusion", {"n_action_steps": 8}, "n_action_steps <= 7, .* got 8"),
        ("diffusion", {"horizon": 7}, "downsampling"),
        (
            "diffusion",
            {"num_inference_steps": 101},
            r"in 1\.\.num_train_.*=100, got 101",
        ),
    ],
)
def test_illegal_overrides_fail_at_load(name, overrides, problem, checkpoint):
    with pytest.raises(SchemaError, match=rf"{problem}.*overrides="):
        LeRobotPolicyWrapper.from_pretrained(
            checkpoint(name).folder, overrides=overrides
        )


def test_a_field_of_another_version_shows_when_loading(changed):
    folder = changed("act", field_of_the_future=1)
    settings = LeRobotSettings()
    report = check_lerobot_health(folder, settings=settings, load=True)
    assert not report.ok
    assert "field_of_the_future" in report.problems[0]


@pytest.mark.parametrize(
    ("overrides", "advice"),
    [
        (
            {"tokenizer_max_length": 12},
            r"'tokenizer_processor': \{'max_length': \.\.\.",
        ),
        ({"pad_language_to": "max_length"}, "processor_overrides"),
        ({"normalization_mapping": {}}, "fit_lerobot_policy"),
        ({"pretrained_path": "else/where"}, "first argument"),
        ({"device": "cuda"}, "Leave one out"),
    ],
)
def test_overrides_without_effect_are_refused(overrides, advice, checkpoint):
    with pytest.raises(SchemaError, match=advice):
        LeRobotPolicyWrapper.from_pretrained(
            checkpoint("smolvla").folder, device="cpu", overrides=overrides
        )


def test_arguments_without_effect_are_refused(checkpoint):
    import torch

    folder = checkpoint("act").folder
    load = LeRobotPolicyWrapper.from_pretrained
    with pytest.raises(ValueError, match="no revision beside the folder"):
        load(folder, revision="v2")
    with pytest.raises(ValueError, match="no rename_map for a policy of type 'act'"):
        load(folder, rename_map={"a": "b"})
    with pytest.raises(ValueError, match=r"'dtype', got torch\.float64"):
        load(folder, dtype=torch.float64)
    with pytest.raises(
        SchemaError, match=r"'processor_overrides', got \['normaliser'\]"
    ):
        load(folder, processor_overrides={"normaliser": {}})
    with pytest.raises(ValueError, match="no camera_name beside a checkpoint"):
        load(folder, camera_name="top")


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_no_foreign_error_escapes_a_damaged_checkpoint(checkpoint_folder, data):
    with TemporaryDirectory() as folder:
        folder = Path(shutil.copytree(checkpoint_folder, Path(folder) / "copy"))
        file = data.draw(st.sampled_from(sorted(folder.iterdir())))
        content = bytearray(file.read_bytes())
        start = data.draw(st.integers(0, min(len(content), 3000) - 1))
        size = data.draw(st.integers(0, 20))
        content[start : start + size] = data.draw(st.binary(max_size=9))
        file.write_bytes(content)
        # May it load or not: no error of another kind.
        with contextlib.suppress(VLAError, FileNotFoundError):
            LeRobotPolicyWrapper.from_pretrained(folder)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    name=st.sampled_from(
        [
            "chunk_size",
            "n_action_steps",
            "input_features",
            "output_features",
            "normalization_mapping",
            "n_heads",
            "type",
            "device",
            "dim_model",
            "use_amp",
        ]
    ),
    value=st.sampled_from(
        [None, 0, -1, 1.5, "x", [], {}, [1], {"a": 1}, {"action": None}, True]
    ),
)
def test_no_foreign_error_escapes_a_damaged_configuration(
    checkpoint_folder, name, value
):
    with TemporaryDirectory() as folder:
        folder = Path(shutil.copytree(checkpoint_folder, Path(folder) / "copy"))
        file = folder / "config.json"
        content = {**json.loads(file.read_text()), name: value}
        file.write_text(json.dumps(content))
        with contextlib.suppress(VLAError, FileNotFoundError):
            LeRobotPolicyWrapper.from_pretrained(folder)
