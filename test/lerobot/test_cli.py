from __future__ import annotations

import json

import pytest
import torch
from lerobot_checkpoints import ACT, DIFFUSION

from torchrl_vla.cli.main import main
from torchrl_vla.data import DemonstrationDataset, write_lerobot
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.evaluation import EvaluationResult
from torchrl_vla.policies import LeRobotPolicyWrapper
from torchrl_vla.recipes import load_executor, prepare_environment
from torchrl_vla.schema import RobotDatasetMetadata

pytestmark = [
    pytest.mark.lerobot,
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),
]

CONFIGS = {
    "act": {**ACT, "chunk_size": 6},
    "diffusion": {
        **DIFFUSION,
        "do_mask_loss_for_padding": True,
        "pretrained_backbone_weights": None,
        "crop_shape": None,
        "use_group_norm": True,
    },
}
SIZES = ["--image-size", "32", "--num-envs", "4"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The same demonstrations in both formats."""
    folder = tmp_path_factory.mktemp("demonstrations")
    where = ["--folder", str(folder / "ours"), "--tasks", "reach-red"]
    assert main(["collect", *where, "--episodes", "6", *SIZES]) == 0
    dataset = DemonstrationDataset.from_folder(folder / "ours")
    write_lerobot(dataset, folder / "lerobot", images="png", progress=False)
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def train(source, folder, policy, *options):
    budget = ["--steps", "2", "--batch-size", "4", *options]
    where = ["--dataset", str(source), "--folder", str(folder), "--policy", str(policy)]
    return main(["train", *where, *budget])


def train_new(source, folder, policy_type):
    config = json.dumps(CONFIGS[policy_type])
    assert train(source, folder, policy_type, "--config", config) == 0


@pytest.mark.parametrize("policy_type", CONFIGS)
def test_train_and_evaluate_make_a_chain(policy_type, data, tmp_path, capsys):
    train_new(data / "ours", tmp_path / "policy", policy_type)
    assert (tmp_path / "policy" / "learning_curve.csv").read_text().startswith("step,")
    record = tmp_path / "result.json"
    where = ["--policy", str(tmp_path / "policy"), "--env", "tabletop/reach-red"]
    options = ["--episodes", "5", "--json", str(record), *SIZES]
    assert main(["evaluate", *where, *options]) == 0
    result = EvaluationResult.from_json(record)
    assert len(result) == 5
    assert {episode.instruction for episode in result.episodes} == {
        "reach the red block"
    }
    assert "over 5 episodes" in capsys.readouterr().out


def test_a_lerobot_dataset_trains_the_same_policy_as_ours(data, tmp_path):
    curves = []
    for source in ("ours", "lerobot"):
        train_new(data / source, tmp_path / source, "act")
        lines = (tmp_path / source / "learning_curve.csv").read_text().splitlines()
        curves.append(float(lines[1].removeprefix("2,")))
    # The statistics differ in their last bits.
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)


def test_training_goes_on_from_a_checkpoint(data, tmp_path):
    train_new(data / "lerobot", tmp_path / "first", "act")
    source, rate = data / "lerobot", ["--lr", "1e-2"]
    assert train(source, tmp_path / "second", tmp_path / "first", *rate) == 0
    first, second = (
        LeRobotPolicyWrapper.from_pretrained(tmp_path / name)
        for name in ("first", "second")
    )
    assert second.chunk_size == first.chunk_size == 6
    assert not torch.equal(
        first.policy.model.action_head.bias, second.policy.model.action_head.bias
    )


def test_a_robot_that_means_something_else_is_refused(data, tmp_path, capsys):
    train_new(data / "ours", tmp_path, "act")
    where = ["--policy", str(tmp_path), "--env", "pusht", "--num-envs", "1"]
    assert main(["evaluate", *where, "--episodes", "1"]) == 1
    assert "action_reference: ('delta', 'delta')" in capsys.readouterr().err


def test_cameras_are_paired_by_name_or_renamed(data, tmp_path, capsys):
    dataset = DemonstrationDataset.from_folder(data / "ours")
    frames = dataset.frames.clone()
    image = frames.pop(("observation", "image"))
    frames["observation", "image"] = {"top": image, "side": image.clone()}
    cameras = DemonstrationDataset(frames, dataset.metadata, dataset.instructions)
    cameras.to_folder(tmp_path / "cameras")
    train_new(tmp_path / "cameras", tmp_path / "policy", "act")
    where = ["--policy", str(tmp_path / "policy"), "--env", "tabletop/reach-red"]
    where += ["--episodes", "1", *SIZES]
    assert main(["evaluate", *where]) == 1
    assert "without a partner are the policy's" in capsys.readouterr().err
    renamed = ["--rename-map", '{"observation.image": "top"}']
    assert main(["evaluate", *where, *renamed, "--empty-cameras", "side"]) == 1
    assert "cannot do without one" in capsys.readouterr().err
    one = DemonstrationDataset(
        frames.exclude(("observation", "image", "side")),
        dataset.metadata,
        dataset.instructions,
    )
    one.to_folder(tmp_path / "top")
    renamed = ["--rename-map", '{"front": "top"}']
    assert train(tmp_path / "top", tmp_path / "tuned", tmp_path / "policy") == 1
    assert "without a partner are the policy's" in capsys.readouterr().err
    train_new(tmp_path / "top", tmp_path / "one", "act")
    where[1] = str(tmp_path / "one")
    assert main(["evaluate", *where, *renamed]) == 1
    assert "of the robot in rename_map, got ['front']" in capsys.readouterr().err
    assert main(["evaluate", *where]) == 0  # one image fits one camera
    assert "over 1 episodes" in capsys.readouterr().out


def test_a_loaded_actor_executes_as_much_of_a_chunk_as_lerobot(data, tmp_path):
    train_new(data / "ours", tmp_path, "act")
    metadata = TabletopEnv().metadata
    assert load_executor(tmp_path, metadata=metadata).replan_interval == 4
    assert (
        load_executor(tmp_path, metadata=metadata, replan_interval=2).replan_interval
        == 2
    )
    (tmp_path / "metadata.json").unlink()
    pusht = RobotDatasetMetadata("pusht", action_dim=2, action_reference="absolute")
    # Without it only the sizes are known.
    assert load_executor(tmp_path, metadata=pusht).replan_interval == 4


def test_an_environment_carries_history_for_a_policy_that_looks_back(data, tmp_path):
    env = TabletopEnv(2, image_size=32)
    for name, keys in (("act", 0), ("diffusion", 2)):
        train_new(data / "ours", tmp_path / name, name)
        actor = load_executor(tmp_path / name, metadata=env.metadata)
        prepared = prepare_environment(env, actor)
        assert (prepared is env) == (keys == 0)
        added = set(prepared.reset().keys()) - set(env.reset().keys())
        assert added == {"observation_history", "history_is_pad"} if keys else not added


def test_a_policy_that_reads_text_gets_the_instructions_of_the_environment(
    data, tmp_path, checkpoint
):
    made = checkpoint("smolvla")
    env = TabletopEnv(2)
    metadata = RobotDatasetMetadata("somewhere")
    actor = load_executor(made.folder, metadata=metadata, instructions=env.instructions)
    assert actor.policy.instructions is env.instructions
