from __future__ import annotations

import copy
import json
import sys
from dataclasses import replace

import pytest
import torch

from torchrl_vla.data import collect
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.execution import ActionInterpolation
from torchrl_vla.recipes import (
    checkpoints,
    load_executor,
    make_policy,
    prepare_environment,
    save_checkpoint,
)
from torchrl_vla.schema import (
    IncompatibleMetadataError,
    MetadataError,
    MissingExtraError,
    RobotDatasetMetadata,
    SchemaError,
)
from torchrl_vla.spaces import ModelSpace


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    env = TabletopEnv(4, image_size=16)
    folder = tmp_path_factory.mktemp("reach") / "dataset"
    return collect(env, env.make_expert(), 6, folder=folder, progress=False)


@pytest.fixture(scope="module")
def policy(dataset):
    return make_policy(dataset, chunk_size=3, hidden=16, depth=1).eval()


@pytest.mark.parametrize("mode", ["mean_std", "min_max"])
def test_a_loaded_actor_acts_as_the_one_that_was_saved(dataset, policy, mode, tmp_path):
    policy, space = copy.deepcopy(policy), ModelSpace(dataset.metadata, mode)
    policy.policy_space = None
    folder = save_checkpoint(tmp_path / "policy", policy, space)
    env = TabletopEnv(4, image_size=16, seed=0)
    loaded = load_executor(folder, metadata=env.metadata, replan_interval=2)
    data = env.reset()
    data["is_init"] = torch.ones(4, 1, dtype=torch.bool)
    expected = space.executor(policy)(data.clone())["action"]
    assert torch.equal(loaded(data)["action"], expected)
    assert loaded.replan_interval == 2


def test_the_policy_fits_the_dataset(dataset, policy):
    assert policy.action_dim == 2
    assert policy.chunk_size == 3
    assert policy.instructions.texts == dataset.instructions.texts


def test_a_robot_that_means_something_else_is_refused(dataset, policy, tmp_path):
    folder = save_checkpoint(tmp_path, policy, ModelSpace(dataset.metadata))
    other = replace(TabletopEnv().metadata, action_reference="absolute")
    with pytest.raises(IncompatibleMetadataError, match=r"action_reference"):
        load_executor(folder, metadata=other)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    metadata = TabletopEnv().metadata
    with pytest.raises(FileNotFoundError, match=r"expected a checkpoint at .*nowhere"):
        load_executor(tmp_path / "nowhere", metadata=metadata)


def test_a_folder_without_its_parts_is_refused_with_what_is_missing(tmp_path):
    with pytest.raises(SchemaError, match=r"got no \['metadata.json', 'policy'\]"):
        load_executor(tmp_path, metadata=TabletopEnv().metadata)


def test_options_of_lerobots_checkpoints_are_refused(dataset, policy, tmp_path):
    folder = save_checkpoint(tmp_path, policy, ModelSpace(dataset.metadata))
    metadata = TabletopEnv().metadata
    with pytest.raises(SchemaError, match=r"expected no \['rename_map'\] for"):
        load_executor(folder, metadata=metadata, rename_map={"a": "b"})


def test_a_checkpoint_of_the_hub_says_which_extra_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "lerobot", None)
    with pytest.raises(
        MissingExtraError,
        match=r"'runs/policy' of the .* \(there is no such folder\).*\[lerobot\]'",
    ):
        load_executor("runs/policy", metadata=TabletopEnv().metadata)


def test_an_environment_for_a_policy_that_carries_nothing_stays_as_it_is(
    dataset, policy
):
    env = TabletopEnv(2, image_size=16)
    assert (
        prepare_environment(env, ModelSpace(dataset.metadata).executor(policy)) is env
    )


def test_names_count_only_where_units_or_references_are_declared(
    dataset, policy, tmp_path
):
    lerobots = RobotDatasetMetadata(
        "pusht",
        embodiment_id="2d pointer",
        action_names=("motor_0", "motor_1"),
        state_names=("motor_0", "motor_1"),
        control_frequency_hz=10.0,
        action_statistics=dataset.metadata.action_statistics,
        state_statistics=dataset.metadata.state_statistics,
    )
    env = TabletopEnv(1)
    folder = save_checkpoint(tmp_path, policy, ModelSpace(lerobots))
    assert load_executor(folder, metadata=env.metadata).replan_interval is None
    declared = replace(lerobots, action_reference="delta")
    save_checkpoint(tmp_path, policy, ModelSpace(declared))
    with pytest.raises(IncompatibleMetadataError, match=r"'motor_0'.*another order"):
        load_executor(folder, metadata=env.metadata)
    slower = replace(lerobots, control_frequency_hz=5.0)
    save_checkpoint(tmp_path, policy, ModelSpace(slower))
    with pytest.raises(IncompatibleMetadataError, match=r"5\.0 against 10\.0"):
        load_executor(folder, metadata=env.metadata)


def test_an_environment_skips_the_rows_that_an_executor_makes_wait(policy, dataset):
    env = TabletopEnv(2, image_size=16, seed=0)
    space = ModelSpace(dataset.metadata)
    aligned = space.executor(policy, align=True)
    twice = ActionInterpolation(aligned, 2, action_reference="absolute")
    for actor in (aligned, twice):
        prepared = prepare_environment(env, actor)
        assert not prepared.reset()["is_waiting"].any()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metadata.json", "{", "expected JSON in '.*metadata.json'"),
        ("metadata.json", '{"dataset_id": 3}', "a text at 'dataset_id' in '.*metadata"),
        ("model_space.json", "[]", "an object in '.*model_space.json'"),
        ("model_space.json", '{"mode": "all"}', "one of .* at 'mode' in '.*model_sp"),
        ("policy/config.json", "{}", "expected 'policy' in '.*config.json'"),
        ("policy/config.json", None, "arguments of the policy at 'description' in"),
        ("policy/instructions.json", "[3]", r"a text at '\[0\]' in '.*instructions"),
        ("policy/weights.pt", "PK", "a complete file of torch.save in '.*weights.pt'"),
    ],
)
def test_a_damaged_file_is_named(dataset, policy, tmp_path, name, text, message):
    folder = save_checkpoint(tmp_path, policy, ModelSpace(dataset.metadata))
    path = folder / name
    if text is None:
        values = json.loads(path.read_text())
        values["description"]["arguments"]["chunk_size"] = "many"
        text = json.dumps(values)
    path.write_text(text)
    with pytest.raises((SchemaError, MetadataError), match=message):
        load_executor(folder, metadata=dataset.metadata)


def test_a_failed_write_leaves_the_checkpoint_that_was_there(
    dataset, policy, tmp_path, monkeypatch
):
    space = ModelSpace(dataset.metadata)
    folder = save_checkpoint(tmp_path, policy, space)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    def fail(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(checkpoints, "write_json", fail)
    with pytest.raises(OSError, match="the disk is full"):
        save_checkpoint(tmp_path, policy, space)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
