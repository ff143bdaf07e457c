from __future__ import annotations

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from lerobot_folders import edit_info, record, write_folder

from torchrl_vla.data import DemonstrationDataset, collect
from torchrl_vla.data.rollout_frames import frame_statistics
from torchrl_vla.diagnosis import Inspection, Problem, inspect_path, write_inspection
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.evaluation import EpisodeRecord, EvaluationResult
from torchrl_vla.recipes import TrainingSettings, make_policy, save_checkpoint
from torchrl_vla.recipes import train_behavior_cloning as train
from torchrl_vla.schema import EPISODE_KEY
from torchrl_vla.spaces import ModelSpace

IMAGE, STATE = ("observation", "image"), ("observation", "state")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    env = TabletopEnv(4, image_size=16)
    folder = tmp_path_factory.mktemp("reach") / "dataset"
    return collect(env, env.make_expert(), 6, folder=folder, progress=False)


@pytest.fixture
def rewrite(data, tmp_path):
    """Write the dataset with other frames or metadata; return what inspect says."""

    def write(change=lambda frames: frames, **fields) -> Inspection:
        frames = data.frames.clone()
        changed = change(frames)
        frames = frames if changed is None else changed
        metadata = replace(data.metadata, **fields)
        copy = DemonstrationDataset(frames, metadata, data.instructions)
        return inspect_path(copy.to_folder(tmp_path / "copy", overwrite=True))

    return write


def problems_of(inspection):
    return [problem for problem in inspection.problems if not problem.is_note]


def test_a_clean_dataset_of_ours_has_sizes_tasks_and_no_problem(rewrite, data):
    found = rewrite()
    assert (found.exit_code, found.kind) == (0, "demonstration dataset")
    assert found.facts["episodes"] == 6
    assert found.facts["frames"] == len(data)
    assert found.facts["control rate"] == "10 Hz"
    (camera,) = found.tables["cameras"]
    assert camera == {"camera": "image", "dtype": "uint8", "[C, h, w]": [3, 16, 16]}
    assert sum(row["episodes"] for row in found.tables["tasks"]) == 6
    assert [row["dimension"] for row in found.tables["actions"]] == ["dx", "dy"]
    (sheet,) = found.pictures.values()
    assert sheet.shape == (3, 3 * 20, 8 * 20)  # three episodes, eight frames, frames
    assert set(found.curves) == {"action dx", "action dy"}
    assert "no problem was found" in str(found)


def test_a_nan_is_named_by_row_episode_frame_and_dimension(rewrite, data):
    def plant(frames):
        frames["action"][17, 1] = float("nan")

    found = rewrite(plant)
    episode = int(data.frames[EPISODE_KEY][17])
    frame = int(data.frames["frame_index"][17])
    assert found.exit_code == 1
    (problem,) = problems_of(found)
    assert problem.where == f"'action' row 17 (episode {episode}, frame {frame})"
    assert problem.message.startswith("expected finite numbers, got nan in dimension 1")
    assert f"(--exclude-episodes {episode})" in problem.remedy


def test_statistics_that_are_not_the_datas_are_named(rewrite, data):
    stats = data.metadata.action_statistics
    moved = replace(stats, mean=stats.mean + torch.tensor([0.0, 0.5]))
    (problem,) = problems_of(rewrite(action_statistics=moved))
    assert problem.where == "statistics of 'action'"
    mean = float(stats.mean[1])
    assert f"expected mean {mean:.6g} in dimension 1, as in the data, got " in (
        problem.message
    )
    assert problem.message.endswith(f"{mean + 0.5:.6g} (dimensions [1])")
    (problem,) = problems_of(
        rewrite(action_statistics=replace(stats, max=stats.max * 2))
    )
    assert "expected max" in problem.message


def test_actions_beyond_the_bounds_are_named(rewrite):
    bounds = {"action_low": (-0.5, -1.0), "action_high": (0.5, 1.0)}
    (problem,) = problems_of(rewrite(**bounds))
    assert "expected dimension 0 in -0.5..0.5, got " in problem.message
    assert problem.remedy.startswith("Clamp the actions")


def test_an_episode_of_one_frame_is_named(rewrite, data):
    first = (data.frames[EPISODE_KEY] == 0).nonzero().flatten()

    def cut(frames):
        keep = torch.ones(len(frames), dtype=torch.bool)
        keep[first[1:]] = False
        return frames[keep]

    messages = [str(problem) for problem in problems_of(rewrite(cut))]
    assert any(
        "row 0 (episode 0, frame 0): expected episodes of at least 2 frames, got 1 in "
        "1 episodes: [0]" in message
        for message in messages
    )


def test_frames_with_a_gap_are_named(rewrite):
    def drop(frames):
        return torch.cat([frames[:3], frames[4:]])

    messages = [problem.message for problem in problems_of(rewrite(drop))]
    assert any("expected frames from 0 on without gaps" in m for m in messages)


def test_a_blank_picture_is_named(rewrite):
    def blank(frames):
        frames[IMAGE][0] = 7

    (problem,) = problems_of(rewrite(blank))
    assert problem.where == "camera 'image' row 0 (episode 0, frame 0)"
    assert "expected a picture, got 7 in every pixel" in problem.message


def test_a_constant_dimension_is_a_note(rewrite, data):
    def still(frames):
        frames[STATE][:, 0] = 0.25

    frames = data.frames.clone()
    still(frames)
    found = rewrite(still, **frame_statistics(frames))
    assert (problems_of(found), found.exit_code) == ([], 0)
    notes = [problem.message for problem in found.problems if problem.is_note]
    assert "dimensions [0] are constant: [0.25]" in notes


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_lerobot_datasets_of_both_formats_are_read(version, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_folder(tmp_path / "data", record(), version=version)
    found = inspect_path(folder)
    assert (found.kind, found.exit_code) == ("LeRobot dataset", 0), str(found)
    assert found.facts["episodes"] == 3
    assert {row["camera"] for row in found.tables["cameras"]} == {"front", "wrist"}
    assert [row["frames"] for row in found.tables["tasks"]] == [5 + 7, 3]
    assert len(found.pictures) == 2


def test_impossible_statistics_do_not_hide_the_rest(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_folder(tmp_path / "data", record())
    path = folder / "meta" / "stats.json"
    stats = json.loads(path.read_text())
    stats["action"]["std"] = [-1.0, 1.0]
    path.write_text(json.dumps(stats))
    found = inspect_path(folder)
    assert found.exit_code == 1
    assert found.facts["frames"] == 15
    (problem,) = problems_of(found)
    assert problem.where == "'meta/' statistics"
    assert "std >= 0" in problem.message
    assert problem.remedy.startswith("Open it with statistics='exact'")


def test_an_unreadable_dataset_gives_its_readers_error(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_folder(tmp_path / "data", record())
    edit_info(folder, total_frames=99)
    found = inspect_path(folder)
    assert (found.exit_code, found.readable) == (2, False)
    (problem,) = found.problems
    assert "99" in problem.message
    for damaged in ("{", "[]", '{"codebase_version": "v3.0"}', "\x00"):
        (folder / "meta" / "info.json").write_text(damaged)
        found = inspect_path(folder)
        assert (found.kind, found.exit_code) == ("LeRobot dataset", 2)


def test_an_unfinished_recording_is_named(data, tmp_path):
    folder = data.to_folder(tmp_path / "copy")
    (folder / "metadata.json").unlink()
    found = inspect_path(folder)
    assert (found.kind, found.exit_code) == ("demonstration dataset", 2)
    assert "the recording was not finished" in found.problems[0].message


def test_an_hdf5_file_is_read_with_all_it_holds(tmp_path):
    path = tmp_path / "lift.hdf5"
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for i, length in enumerate((4, 1)):
            demo = file.create_group(f"data/demo_{i}")
            demo["actions"] = rng.normal(size=(length, 2))
            demo["obs/eef_pos"] = rng.normal(size=(length, 3))
            images = rng.integers(0, 256, (length, 8, 8, 3), dtype=np.uint8)
            demo["obs/agentview_image"] = images
    found = inspect_path(path)
    assert found.kind == "HDF5 file of robomimic's layout"
    assert (found.facts["frames"], found.exit_code) == (5, 1)
    assert found.tables["cameras"][0]["camera"] == "agentview_image"
    (problem,) = problems_of(found)
    assert problem.where == "row 4 (episode 1, frame 0)"
    path.write_bytes(path.read_bytes()[:200])
    assert inspect_path(path).exit_code == 2


def test_a_checkpoint_says_what_it_was_trained_on(data, tmp_path):
    policy = make_policy(data, chunk_size=3, hidden=8, depth=1)
    folder = save_checkpoint(tmp_path / "policy", policy, ModelSpace(data.metadata))
    found = inspect_path(folder)
    assert (found.kind, found.exit_code) == ("checkpoint", 0)
    assert found.facts["policy"] == "TinyVLA"
    assert found.facts["chunk"] == "H = 3, A = 2"
    assert "(mean_std)" in found.facts["space"]
    with torch.no_grad():
        next(policy.parameters()).view(-1)[0] = float("nan")
    save_checkpoint(folder, policy, ModelSpace(data.metadata))
    (problem,) = problems_of(inspect_path(folder))
    assert "expected finite weights, got 1 others of " in problem.message
    (folder / "metadata.json").unlink()
    assert inspect_path(folder).exit_code == 2


def test_an_interrupted_training_shows_its_curve(data, tmp_path):
    policy = make_policy(data, chunk_size=3, hidden=8, depth=1)
    settings = TrainingSettings(steps=6, batch_size=4, log_interval=2)
    train(policy, data, settings, folder=tmp_path / "run", progress=False)
    found = inspect_path(tmp_path / "run")
    assert (found.kind, found.exit_code) == ("training", 0)
    assert found.facts["iteration"] == 6
    assert [step for step, _ in found.curves["loss"]] == [2, 4, 6]
    assert "resume" in found.problems[0].remedy
    (tmp_path / "run" / "training_state.pt").write_bytes(b"PK")
    assert inspect_path(tmp_path / "run").exit_code == 2


def test_the_log_of_a_finetuning_is_read(tmp_path):
    (tmp_path / "log.csv").write_text("iteration,success\n1,0.5\n2,\n3,0.75\n")
    found = inspect_path(tmp_path)
    assert (found.kind, found.exit_code) == ("training", 0)
    assert found.curves == {"success": [(1.0, 0.5), (3.0, 0.75)]}
    (tmp_path / "log.csv").write_text("iteration,success\n1,0.5\n2,nan\n")
    (problem,) = problems_of(inspect_path(tmp_path))
    assert "'success' is not finite in iteration 2" in problem.message


def test_an_evaluation_with_a_seed_twice_is_a_problem(tmp_path):
    path = tmp_path / "result.json"
    records = [EpisodeRecord(seed, "pick", True, 1.0, 5) for seed in (1, 2, 3)]
    path.write_text(EvaluationResult(records, {"seed": 0}).to_json())
    found = inspect_path(path)
    assert (found.kind, found.exit_code) == ("evaluation", 0)
    assert found.tables["instructions"][0]["episodes"] == 3
    path.write_text(EvaluationResult([*records, records[0]], {"seed": 0}).to_json())
    (problem,) = problems_of(inspect_path(path))
    assert "expected each seed once, got [1] more than once" in problem.message
    path.write_text('{"episodes": 3}')
    assert inspect_path(path).exit_code == 2


def test_what_is_none_of_them_exits_with_2(tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        found = inspect_path(path)
        assert (found.kind, found.exit_code) == ("unknown", 2)
        assert (
            "expected a dataset (ours, LeRobot's, .hdf5)" in found.problems[0].message
        )


def test_the_page_and_the_json_hold_what_was_found(data, tmp_path):
    found = inspect_path(data.to_folder(tmp_path / "copy"))
    found = replace(found, problems=(Problem("<row> 3", "a & b", "Repair."),))
    page = write_inspection(tmp_path / "page.html", found).read_text("utf-8")
    assert "&lt;row&gt; 3: a &amp; b. Repair." in page
    assert page.count("data:image/png;base64,") == 1
    assert page.count("<svg") == 2
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    values = json.loads(found.to_json())
    assert values["exit_code"] == 1
    assert values["facts"]["episodes"] == 6
    assert values["problems"][0]["where"] == "<row> 3"
