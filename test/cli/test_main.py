from __future__ import annotations

import json
from dataclasses import replace

import av
import pytest
import torch

from torchrl_vla.cli.main import main
from torchrl_vla.data import DemonstrationDataset, LeRobotDemonstrations
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.evaluation import EvaluationResult


def test_collect_train_and_evaluate_make_a_chain(tmp_path, capsys):
    dataset, policy = tmp_path / "dataset", tmp_path / "policy"
    small = ["--image-size", "16", "--num-envs", "4"]
    assert main(["collect", "--folder", str(dataset), "--episodes", "6", *small]) == 0
    assert DemonstrationDataset.from_folder(dataset).num_episodes == 6
    assert "reach the red block" in capsys.readouterr().out
    arguments = ["--dataset", str(dataset), "--folder", str(policy), "--hidden", "16"]
    assert main(["train", *arguments, "--steps", "5", "--batch-size", "8"]) == 0
    assert (policy / "learning_curve.csv").read_text().startswith("step,loss\n5,")
    record, video = tmp_path / "result.json", tmp_path / "clip.mp4"
    arguments = ["--policy", str(policy), "--episodes", "5", "--json", str(record)]
    assert main(["evaluate", *arguments, "--video", str(video), *small]) == 0
    result = EvaluationResult.from_json(record)
    assert len(result) == 5
    with av.open(str(video)) as container:
        images = sum(1 for _ in container.decode(video=0))
    assert images == sum(episode.length for episode in result.episodes[:4])
    assert "over 5 episodes" in capsys.readouterr().out


@pytest.mark.parametrize("images", ["png", "video"])
def test_collect_writes_a_lerobot_dataset_on_request(tmp_path, capsys, images):
    folder, ours = tmp_path / "lerobot", tmp_path / "ours"
    small = ["--episodes", "6", "--image-size", "32", "--num-envs", "4"]
    assert main(["collect", "--folder", str(ours), *small]) == 0
    as_lerobot = ["--format", "lerobot", "--images", images]
    assert main(["collect", "--folder", str(folder), *small, *as_lerobot]) == 0
    assert "6 episodes" in capsys.readouterr().out
    expected = DemonstrationDataset.from_folder(ours).frames
    dataset = LeRobotDemonstrations.from_folder(folder, cache_folder=tmp_path / "cache")
    for key in ("action", ("observation", "state"), "language_instruction"):
        assert torch.equal(dataset.frames[key], expected[key]), key
    sample = dataset.replay_buffer(1)[torch.arange(len(dataset))]
    shown = sample["observation", "image"].float()
    error = (shown - expected["observation", "image"].float()).abs().mean()
    assert error == 0 if images == "png" else error < 10
    assert main(["collect", "--folder", str(folder), *small, *as_lerobot]) == 1
    assert "collect: expected no dataset at" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cache",
        "lerobot",
        "ours",
    ]


def test_collect_writes_the_conventions_of_another_dataset(tmp_path, capsys):
    small = ["--episodes", "6", "--image-size", "16", "--num-envs", "4"]
    ours, theirs, swapped = (str(tmp_path / x) for x in ("ours", "theirs", "swapped"))
    assert main(["collect", "--folder", ours, *small]) == 0
    robot = DemonstrationDataset.from_folder(ours).metadata
    other = replace(robot, dataset_id="other", state_names=robot.state_names[::-1])
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/metadata.json").write_text(other.to_json())
    convert = ["collect", *small, "--convert-to", theirs, "--folder"]
    assert main([*convert, swapped]) == 0
    assert "converted:\n  - state_names: " in capsys.readouterr().out
    found = DemonstrationDataset.from_folder(swapped)
    state = DemonstrationDataset.from_folder(ours).frames["observation", "state"]
    assert torch.equal(found.frames["observation", "state"], state.flip(-1))
    assert found.metadata.state_names == other.state_names
    assert found.provenance["converted"][0].startswith("state_names: ")
    lerobot = [str(tmp_path / "lerobot"), "--format", "lerobot", "--images", "png"]
    assert main([*convert, *lerobot]) == 0
    read = LeRobotDemonstrations.from_folder(lerobot[0], cache_folder=tmp_path / "c")
    assert torch.equal(read.frames["observation", "state"], state.flip(-1))
    assert not list(tmp_path.glob("*.recording"))


def test_collect_refuses_before_the_first_episode_what_has_no_conversion(
    tmp_path, capsys
):
    robot = TabletopEnv(1, image_size=16).metadata
    other = replace(robot, action_units=("deg", "deg"))
    (tmp_path / "metadata.json").write_text(other.to_json())
    folder = tmp_path / "dataset"
    arguments = ["--folder", str(folder), "--convert-to", str(tmp_path)]
    assert main(["collect", *arguments, "--image-size", "16"]) == 1
    assert "action_units: " in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["metadata.json"]


def test_collect_renders_every_nth_frame_and_training_samples_these(tmp_path, capsys):
    dataset = tmp_path / "dataset"
    sparse = ["--image-size", "16", "--num-envs", "4", "--image-interval", "2"]
    assert main(["collect", "--folder", str(dataset), "--episodes", "6", *sparse]) == 0
    collected = DemonstrationDataset.from_folder(dataset)
    assert collected.provenance["image_interval"] == 2
    fresh = collected.frames["frame_index"] % 2 == 0
    assert not collected.frames["image_is_stale"].flatten()[fresh].any()
    options = ["--folder", str(tmp_path / "policy"), "--hidden", "16", "--steps", "2"]
    assert main(["train", "--dataset", str(dataset), *options]) == 0
    capsys.readouterr()
    options = ["--folder", str(tmp_path / "x"), "--format", "lerobot", *sparse]
    assert main(["collect", *options]) == 1
    assert "expected --image-interval 1 with --format" in capsys.readouterr().err


def test_the_demo_prints_every_evaluation_and_where_the_report_is(tmp_path, capsys):
    sizes = ["--demonstrations", "6", "--steps", "2", "--episodes", "2"]
    folder = ["--folder", str(tmp_path), "--image-size", "16"]
    assert main(["demo", *folder, *sizes, "--iterations", "1"]) == 0
    out = capsys.readouterr().out
    for name in ("before", "cloned", "after", "shuffled instruction", "blind"):
        assert f"{name}: success " in out
    assert str(tmp_path / "report.html") in out
    assert json.loads((tmp_path / "after.json").read_text())["summary"]["episodes"] == 2


def test_the_demo_only_clones_on_request_and_in_metaworld(tmp_path, capsys):
    sizes = ["--demonstrations", "6", "--steps", "2", "--episodes", "2"]
    folder = ["--folder", str(tmp_path), "--image-size", "16"]
    assert main(["demo", *folder, *sizes, "--iterations", "0"]) == 0
    assert "cloned: success" not in capsys.readouterr().out
    assert main(["demo", "--env", "metaworld", *folder, "--iterations", "3"]) == 1
    assert "--env metaworld, whose demo only clones, got 3" in capsys.readouterr().err


@pytest.mark.usefixtures("opengl")
def test_the_metaworld_demo_runs_from_state_with_clips(tmp_path, capsys):
    sizes = ["--demonstrations", "2", "--steps", "2", "--episodes", "2"]
    tasks = ["--tasks", "reach", "drawer-close"]
    folder = ["--folder", str(tmp_path)]
    assert main(["demo", "--env", "metaworld", *folder, *tasks, *sizes]) == 0
    names = sorted(path.name for path in tmp_path.glob("*.json"))
    assert names == ["after.json", "before.json", "shuffled_instruction.json"]
    assert len(list(tmp_path.glob("clip_*.png"))) == 6
    assert "reach the goal" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:StateScaling")  # one demonstration hardly moves
def test_a_machine_that_cannot_render_gets_a_report_without_clips(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    monkeypatch.setattr("mujoco.GLContext", None)
    sizes = ["--demonstrations", "1", "--steps", "1", "--episodes", "1"]
    where = ["--env", "metaworld", "--tasks", "reach", "--folder", str(tmp_path)]
    assert main(["demo", *where, *sizes]) == 0
    assert "the report has no clips: MetaWorldEnv: expected" in capsys.readouterr().err
    assert (tmp_path / "report.html").is_file()
    assert list(tmp_path.glob("clip_*.png")) == []


def test_our_own_errors_are_one_message_and_a_status(tmp_path, capsys):
    missing = str(tmp_path / "nothing")
    assert main(["train", "--dataset", missing, "--folder", str(tmp_path / "p")]) == 1
    err = capsys.readouterr().err
    assert err.startswith("torchrl-vla: DemonstrationDataset: expected a folder at")
    assert "torchrl-vla collect" in err


def test_help_names_the_subcommands(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    out = capsys.readouterr().out
    for name in ("demo", "collect", "train", "finetune", "evaluate", "compare"):
        assert name in out


def test_an_unknown_subcommand_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["fly"])
    assert "fly" in capsys.readouterr().err
