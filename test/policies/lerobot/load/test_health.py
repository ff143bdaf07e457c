from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import struct
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrl_vla.policies import (
    LEROBOT_POLICY_TYPES,
    LeRobotSettings,
    check_lerobot_health,
)
from torchrl_vla.policies.lerobot import KINDS, PolicyKind


@pytest.fixture
def installed(monkeypatch):
    """Make a version of lerobot look installed; returns how."""
    find_spec, version = importlib.util.find_spec, importlib.metadata.version

    def install(found):
        def spec(name, *args):
            if name != "lerobot":
                return find_spec(name, *args)
            return None if found is None else find_spec("json")

        def say(name):
            return found if name == "lerobot" else version(name)

        monkeypatch.setattr(importlib.util, "find_spec", spec)
        monkeypatch.setattr(importlib.metadata, "version", say)

    for name in ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    install("0.6.1")
    return install


STATE, ACTION = "observation.state", "action"
ENVIRONMENT = "observation.environment_state"
INPUTS = {
    STATE: {"type": "STATE", "shape": [3]},
    ENVIRONMENT: {"type": "ENV", "shape": [2]},
}
OUTPUTS = {ACTION: {"type": "ACTION", "shape": [2]}}
MODES = {"STATE": "MEAN_STD", "ACTION": "MEAN_STD"}
CONFIG = {
    "type": "act",
    "n_obs_steps": 1,
    "chunk_size": 4,
    "n_action_steps": 2,
    "input_features": INPUTS,
    "output_features": OUTPUTS,
    "normalization_mapping": MODES,
}
STATISTICS = {
    "observation.state.mean": [0.0, 1.0, 2.0],
    "observation.state.std": [1.0, 1.0, 1.0],
    "action.mean": [0.5, 0.25],
    "action.std": [2.0, 1.0],
}
BEFORE, AFTER = "policy_preprocessor.json", "policy_postprocessor.json"


def normalizer(features, state_file="step.safetensors"):
    return {
        "registry_name": "normalizer_processor",
        "config": {"features": features, "norm_map": MODES},
        "state_file": state_file,
    }


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "act"
    folder.mkdir()
    write_checkpoint(folder)
    return folder


def write_checkpoint(folder):
    """Write every file that a checkpoint has."""
    write(folder, "config.json", CONFIG)
    write(folder, BEFORE, {"steps": [normalizer({**INPUTS, **OUTPUTS})]})
    write(folder, AFTER, {"steps": [normalizer(OUTPUTS, "after.safetensors")]})
    write_tensors(folder / "model.safetensors", {"weight": [1.0, 2.0]})
    write_tensors(folder / "step.safetensors", STATISTICS)
    write_tensors(folder / "after.safetensors", STATISTICS)


def write_tensors(path, tensors):
    """Write float32 vectors as safetensors does."""
    header, content = {}, b""
    for name, values in tensors.items():
        part = struct.pack(f"<{len(values)}f", *values)
        offsets = [len(content), len(content) + len(part)]
        header[name] = {
            "dtype": "F32",
            "shape": [len(values)],
            "data_offsets": offsets,
        }
        content += part
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)


def write(folder, name, content):
    (folder / name).write_text(json.dumps(content))


def check(path, policy_type=None, **settings):
    return check_lerobot_health(path, policy_type, settings=LeRobotSettings(**settings))


def the_problem(report):
    assert not report.ok
    assert len(report.problems) == 1, report.problems
    return report.problems[0]


def test_a_whole_checkpoint_is_healthy(installed, checkpoint, tmp_path):
    report = check(checkpoint, cache_folder=tmp_path, embodiment_tag="aloha")
    assert report.problems == ()
    assert report.ok
    assert str(report).splitlines() == [
        "ok               yes",
        "lerobot_version  0.6.1",
        f"path             {checkpoint}",
        f"folder           {checkpoint}",
        "policy_type      act",
        "device           cpu",
        f"cache_folder     {tmp_path}",
        "embodiment_tag   aloha",
    ]


def test_problems_stand_below_the_table(installed):
    report = check("/no/such/folder")
    lines = str(report).splitlines()
    assert lines[0] == "ok               no"
    assert lines[-1] == f"problem: {the_problem(report)}"


def test_a_missing_package_names_the_extra(installed, checkpoint):
    installed(None)
    report = check(checkpoint)
    assert report.lerobot_version is None
    assert "pip install 'torchrl-vla[lerobot]'" in the_problem(report)


def test_a_version_that_was_not_tested_is_named(installed, checkpoint):
    installed("0.5.0")
    assert "lerobot of ['0.4', '0.6'], got 0.5.0" in the_problem(check(checkpoint))


@pytest.mark.parametrize(
    "path", ["/no/such/folder", "./act", "runs/act/last", "act", "~/no-such-act"]
)
def test_a_path_that_is_not_there_is_named(installed, path):
    assert f"a checkpoint folder at {path!r}, got nothing" in the_problem(check(path))


def test_a_file_is_no_checkpoint(installed, checkpoint):
    problem = the_problem(check(checkpoint / "config.json"))
    assert "got a file. Pass the folder" in problem


def test_no_path_at_all_names_the_variable(installed):
    assert "set LEROBOT_POLICY_PATH" in the_problem(check(None))


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("config.json", "Save it again with LeRobot"),
        ("model.safetensors", "Save it again with LeRobot"),
        ("policy_preprocessor.json", "migrate_policy_normalization"),
        ("policy_postprocessor.json", "migrate_policy_normalization"),
    ],
)
def test_a_missing_file_is_named(installed, checkpoint, name, advice):
    (checkpoint / name).unlink()
    problem = the_problem(check(checkpoint))
    assert f"but {name!r} is missing" in problem
    assert advice in problem


def test_the_folder_around_a_checkpoint_points_to_it(installed, checkpoint):
    checkpoint.rename(checkpoint.parent / "pretrained_model")
    problem = the_problem(check(checkpoint.parent))
    assert f"Pass {str(checkpoint.parent / 'pretrained_model')!r}" in problem


def test_an_adapter_has_weights_of_another_name(installed, checkpoint):
    (checkpoint / "model.safetensors").rename(checkpoint / "adapter_model.safetensors")
    write(checkpoint, "adapter_config.json", {"base_model_name_or_path": "me/base"})
    assert check(checkpoint).ok
    write(checkpoint, "adapter_config.json", {"base_model_name_or_path": "/gone/base"})
    problem = the_problem(check(checkpoint))
    assert "'base_model_name_or_path'" in problem
    assert "'/gone/base'" in problem


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_config_that_is_no_json_object_is_named(installed, checkpoint, text):
    (checkpoint / "config.json").write_text(text)
    assert "'config.json' " in the_problem(check(checkpoint))


def test_a_lost_state_of_a_processor_is_named(installed, checkpoint):
    (checkpoint / "step.safetensors").unlink()
    (checkpoint / "after.safetensors").unlink()
    before, after = check(checkpoint).problems
    assert "state of 'normalizer_processor'" in before
    assert "'policy_preprocessor.json' names" in before
    assert "'policy_postprocessor.json' names" in after


def test_a_tokenizer_that_has_moved_is_named_with_the_way_out(
    installed, checkpoint, tmp_path
):
    gone = tmp_path / "tokenizer"
    step = {
        "registry_name": "tokenizer_processor",
        "config": {"tokenizer_name": str(gone)},
    }
    steps = [normalizer({**INPUTS, **OUTPUTS}), step]
    write(checkpoint, "policy_preprocessor.json", {"steps": steps})
    problem = the_problem(check(checkpoint))
    assert str(gone) in problem
    fix = "processor_overrides={'tokenizer_processor': {'tokenizer_name': folder}}"
    assert fix in problem
    gone.mkdir()
    assert check(checkpoint).ok


def test_a_backbone_that_has_moved_is_named(installed, checkpoint):
    write(
        checkpoint,
        "config.json",
        {**CONFIG, "type": "smolvla", "vlm_model_name": "/gone/vlm"},
    )
    problem = the_problem(check(checkpoint))
    assert "'vlm_model_name'" in problem
    assert "overrides={'vlm_model_name': folder}" in problem


@pytest.mark.parametrize(
    ("version", "unknown", "known"),
    [("0.6.1", "sac", "multi_task_dit"), ("0.4.4", "multi_task_dit", "act")],
)
def test_types_are_those_of_the_installed_version(
    installed, checkpoint, version, unknown, known
):
    installed(version)
    write(checkpoint, "config.json", {"type": unknown})
    problem = the_problem(check(checkpoint))
    assert f"got {unknown!r}" in problem
    assert str(list(LEROBOT_POLICY_TYPES[version[:3]])) in problem
    assert known in LEROBOT_POLICY_TYPES[version[:3]]
    assert check(None, known).problems == check(None).problems


def test_a_type_that_was_not_exercised_names_both_ways_out(installed, checkpoint):
    write(checkpoint, "config.json", {**CONFIG, "type": "vla_jepa"})
    problem = the_problem(check(checkpoint))
    assert "its backbone comes from the Hub" in problem
    assert "KINDS['vla_jepa'] = PolicyKind(" in problem
    assert "predict_fn=(policy, batch) -> chunk" in problem


def test_a_plugins_type_in_the_registry_is_healthy(installed, checkpoint, monkeypatch):
    write(checkpoint, "config.json", {**CONFIG, "type": "mine"})
    assert "plugin's type takes an entry in KINDS" in the_problem(check(checkpoint))
    monkeypatch.setitem(KINDS, "mine", PolicyKind())
    assert check(checkpoint).ok


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"n_action_steps": 5}, "n_action_steps <= 4, which is all of a call, got 5"),
        ({"n_action_steps": 0}, "a n_action_steps >= 1, got 0"),
        ({"chunk_size": 0, "n_action_steps": 0}, "a chunk >= 1, got 0"),
        ({"n_obs_steps": 2}, "n_obs_steps 1, as its call reads one, got 2"),
        ({"n_obs_steps": 0}, "a n_obs_steps >= 1, got 0"),
        ({"temporal_ensemble_coeff": 0.01}, "beside a temporal_ensemble_coeff, got 2"),
        ({"n_action_steps": "two"}, "one that cannot act"),
        ({"chunk_size": None}, "one that cannot act"),
        ({"input_features": None}, "an object at 'input_features'"),
        ({"output_features": {"action": {"type": "ACTION"}}}, "'shape'"),
        (
            {"input_features": {**INPUTS, "force": {"type": "STATE", "shape": [3]}}},
            "does not normalize 'force'",
        ),
        (
            {"type": "diffusion", "horizon": 8, "n_obs_steps": 2, "n_action_steps": 8},
            "n_action_steps <= 7",
        ),
    ],
)
def test_a_configuration_that_cannot_act_is_named(
    installed, checkpoint, changes, problem
):
    write(checkpoint, "config.json", {**CONFIG, **changes})
    report = check(checkpoint)
    assert not report.ok
    assert any(problem in text for text in report.problems), report.problems


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"action.mean": [0.5, float("nan")]}, "expected finite 'mean'"),
        ({"action.std": [-1.0, 1.0]}, "expected std >= 0"),
        ({"action.mean": [0.5], "action.std": [1.0]}, "width 2 of the feature, got 1"),
        ({"action.mean": [5.5, 5.25]}, "mean of 'action' is [5.5, 5.25] in the prepro"),
    ],
)
def test_statistics_that_cannot_be_true_are_named(
    installed, checkpoint, changes, problem
):
    write_tensors(checkpoint / "step.safetensors", {**STATISTICS, **changes})
    assert problem in the_problem(check(checkpoint))


def test_processors_without_their_statistics_are_named(installed, checkpoint):
    write_tensors(checkpoint / "after.safetensors", {})
    assert "no statistics of ['action (MEAN_STD" in the_problem(check(checkpoint))


@pytest.mark.parametrize("name", ["model.safetensors", "step.safetensors"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content + b"more",
        lambda content: b"version https://git-lfs.github.com/spec/v1",
        lambda content: b"",
    ],
    ids=["cut", "longer", "pointer", "empty"],
)
def test_damaged_numbers_are_named(installed, checkpoint, name, damage):
    file = checkpoint / name
    file.write_bytes(damage(file.read_bytes()))
    problem = the_problem(check(checkpoint))
    assert f"{name}', got {file.stat().st_size} bytes that are cut" in problem


def test_a_header_that_claims_gigabytes_is_refused_unread(installed, checkpoint):
    file = checkpoint / "model.safetensors"
    file.write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    assert "10 bytes that are cut" in the_problem(check(checkpoint))


@pytest.mark.parametrize(
    "content",
    [[], {"steps": 3}, {"steps": [3]}, {"steps": [{"state_file": "../../x"}]}, {}],
)
def test_damaged_processors_are_problems_and_never_errors(
    installed, checkpoint, content
):
    write(checkpoint, BEFORE, content)
    assert f"{BEFORE}'" in the_problem(check(checkpoint))


def test_another_type_than_the_expected_one_is_named(installed, checkpoint):
    problem = the_problem(check(checkpoint, "diffusion"))
    assert "of type 'diffusion', got 'act' in its 'config.json'" in problem
    assert check(checkpoint, policy_type="act").ok


def test_an_unknown_type_is_named_without_a_checkpoint(installed):
    problems = check(None, "pi0fast").problems
    assert "got 'pi0fast'" in problems[-1]


@pytest.mark.parametrize("device", ["cuda:99", "mps:7", "meta"])
def test_a_device_that_is_not_there_is_named(installed, checkpoint, device):
    problem = the_problem(check(checkpoint, device=device))
    assert f"a device that is there, got {device!r}" in problem


def test_a_device_that_is_none_is_named(installed, checkpoint):
    problem = the_problem(check(checkpoint, device="gpu"))
    assert "'cpu' or 'cuda:0', got 'gpu'" in problem


def test_a_repo_id_is_looked_up_in_the_cache_and_not_on_the_network(
    installed, checkpoint, tmp_path, monkeypatch
):
    cache = tmp_path / "cache"
    assert check("me/act", cache_folder=cache).ok  # it would be downloaded
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    problem = the_problem(check("me/act", cache_folder=cache))
    assert "HF_HUB_OFFLINE forbids to download it" in problem
    repo = cache / "models--me--act"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    (repo / "snapshots").mkdir()
    checkpoint.rename(repo / "snapshots" / "abc")
    report = check("me/act", cache_folder=cache)
    assert report.ok
    assert report.folder == repo / "snapshots" / "abc"
    assert report.policy_type == "act"


def test_the_environment_says_what_is_not_said(installed, checkpoint, monkeypatch):
    monkeypatch.setenv("LEROBOT_POLICY_PATH", str(checkpoint))
    monkeypatch.setenv("LEROBOT_EMBODIMENT_TAG", "aloha")
    report = check_lerobot_health()
    assert report.ok
    assert report.embodiment_tag == "aloha"
    monkeypatch.setenv("LEROBOT_POLICY", "me/act")
    assert "LEROBOT_POLICY to agree" in check_lerobot_health().problems[0]


def test_neither_lerobot_nor_weights_are_loaded(checkpoint):
    program = (
        "import sys\n"
        "from torchrl_vla.policies import check_lerobot_health\n"
        "before = set(sys.modules)\n"
        f"check_lerobot_health({str(checkpoint)!r})\n"
        "heavy = {'lerobot', 'transformers', 'safetensors', 'huggingface_hub'}\n"
        "found = heavy & (set(sys.modules) - before)\n"
        "sys.exit(f'loaded: {found}' if found else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_no_damage_of_a_checkpoint_raises(data):
    """Cut, changed and longer files are problems, or change nothing that matters."""
    with TemporaryDirectory() as folder:
        write_checkpoint(folder := Path(folder))
        file = folder / data.draw(
            st.sampled_from(sorted(p.name for p in folder.iterdir()))
        )
        content = bytearray(file.read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(content) - 1))
            content[at : at + data.draw(st.integers(0, 9))] = data.draw(
                st.binary(max_size=9)
            )
        file.write_bytes(content)
        report = check(folder)
        assert all(isinstance(problem, str) for problem in report.problems)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner)
    ),
    max_leaves=4,
)


@given(name=st.sampled_from(sorted(CONFIG)), value=VALUES)
@settings(max_examples=150, deadline=None)
def test_no_value_in_a_configuration_raises(name, value):
    with TemporaryDirectory() as folder:
        write_checkpoint(folder := Path(folder))
        write(folder, "config.json", {**CONFIG, name: value})
        report = check(folder)
        assert report.ok or report.problems
