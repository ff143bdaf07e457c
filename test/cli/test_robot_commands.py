from __future__ import annotations

import inspect
import json
import re

import pytest
import torch
from tensordict.nn import TensorDictModule

from torchrl_vla.cli.main import main
from torchrl_vla.data import LeRobotDemonstrations, LeRobotWriter
from torchrl_vla.runtime import RobotEnv, make_robot, recorded_frame

ROBOT = ["--robot-options", '{"rate_hz": 20, "image_size": 32}']
ROBOT += ["--watchdog-s", "60", "--max-observation-age-s", "60"]  # busy machines


def make_policy(metadata) -> TensorDictModule:
    chunk = torch.arange(8.0).div(20).expand(metadata.action_dim, 8).mT
    policy = TensorDictModule(
        lambda state: chunk.expand(*state.shape[:-1], -1, -1).clone(),
        [("observation", "state")],
        ["action_chunk"],
    )
    policy.chunk_size, policy.action_dim = 8, metadata.action_dim
    return policy


@pytest.fixture
def policy(monkeypatch, tmp_path):
    text = (
        "import sys\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "import torch\n"
        "from tensordict.nn import TensorDictModule\n"
    )
    (tmp_path / "chunks_for_a_robot.py").write_text(
        text + inspect.getsource(make_policy)
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "chunks_for_a_robot:make_policy"


def read(path):
    return json.loads(path.read_text())


def test_run_acts_with_a_policy_and_writes_its_report(policy, tmp_path, capsys):
    files = ["--json", str(tmp_path / "r.json"), "--html", str(tmp_path / "r.html")]
    gate = ["--max-step", "0.03", "--on-violation", "clip"]
    command = ["run", "--policy", policy, "--duration-s", "0.8"]
    assert main([*command, *ROBOT, *gate, *files]) == 0
    found = read(tmp_path / "r.json")
    assert found["ended_by"] == "duration"
    assert found["loop"]["wanted_hz"] == 20
    assert {row["reaction"] for row in found["interventions"]} <= {"clipped", "held"}
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
    assert "ended by duration" in capsys.readouterr().out


def test_what_a_person_records_is_replayed(tmp_path):
    folder = str(tmp_path / "data")
    record = ["record", "--folder", folder, "--teleoperator", "fake", *ROBOT]
    record += ["--episodes", "2", "--episode-s", "0.4", "--reset-s", "0.1"]
    record += ["--images", "png", "--task", "wave", "--handover-s", "0"]
    assert main([*record, "--json", str(tmp_path / "r.json")]) == 0
    dataset = LeRobotDemonstrations.from_folder(folder, cache_folder=tmp_path)
    assert (dataset.num_episodes, len(dataset)) == (2, 16)
    assert list(dataset.instructions) == ["wave"]
    assert dataset.metadata.cameras == ("front", "wrist")
    assert read(tmp_path / "r.json")["recording"]["frames"] == 16
    replay = ["replay", "--folder", folder, "--episode", "1", "--approach-s", "0.1"]
    assert main([*replay, *ROBOT, "--json", str(tmp_path / "p.json")]) == 0
    # 2 of the approach, the last of which is the first of 8; the tick of the reset.
    assert read(tmp_path / "p.json")["loop"]["ticks"] == 1 + 2 + 7


def test_a_dataset_of_another_rate_or_an_episode_that_is_none_is_not_replayed(
    tmp_path, capsys
):
    folder = str(tmp_path / "data")
    record = ["record", "--folder", folder, "--teleoperator", "fake", "--images", "png"]
    assert main([*record, *ROBOT, "--episodes", "1", "--episode-s", "0.2"]) == 0
    assert main(["replay", "--folder", folder]) == 1
    found = capsys.readouterr().err
    assert re.search(r"control_frequency_hz: 20(\.0)? against 30", found)
    assert main(["replay", "--folder", folder, "--episode", "1", *ROBOT]) == 1
    assert "--episode: expected a number below 1" in capsys.readouterr().err


def test_corrections_are_recorded_with_a_policy_and_a_person(policy, tmp_path):
    folder = tmp_path / "data"
    command = ["record", "--folder", str(folder), "--policy", policy, *ROBOT]
    command += ["--teleoperator", "fake", "--strategy", "corrections"]
    assert main([*command, "--duration-s", "0.5", "--images", "png"]) == 0
    dataset = LeRobotDemonstrations.from_folder(folder, cache_folder=tmp_path)
    assert dataset.frames["is_intervention"].all()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["record"], "--teleoperator or --policy"),
        (
            ["record", "--teleoperator", "fake", "--strategy", "corrections"],
            "A person corrects a policy",
        ),
        (["run"], "--policy: expected a policy"),
        (["teleoperate"], "--teleoperator: expected a teleoperator"),
        (["teleoperate", "--robot", "fak"], "--robot: .*Did you mean 'fake'"),
    ],
)
def test_what_is_missing_is_said_in_terms_of_the_options(
    command, message, tmp_path, capsys
):
    if command[0] == "record":
        command = [*command, "--folder", str(tmp_path / "data")]
    assert main(command) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "data").exists()


def test_teleoperate_moves_the_robot(tmp_path):
    command = ["teleoperate", "--teleoperator", "fake", "--duration-s", "0.3"]
    assert main([*command, *ROBOT, "--json", str(tmp_path / "r.json")]) == 0
    assert 2 <= read(tmp_path / "r.json")["loop"]["ticks"] <= 8


def test_a_recording_goes_on_where_it_ended(tmp_path):
    folder = tmp_path / "data"
    robot = make_robot("fake", rate_hz=20.0, image_size=32)
    env = RobotEnv(robot, task="move", max_steps=3)
    writer = LeRobotWriter(
        folder,
        metadata=env.metadata,
        instructions=env.instructions,
        images="png",
        extra_keys=["is_intervention"],
    )
    for step in env.rollout(3)[0]:
        frame = recorded_frame(step.unsqueeze(0))
        writer.add(frame.set("is_intervention", torch.ones(1, 1).bool()))
    env.close()
    writer.end_episode()
    writer.release()  # as after a crash
    record = ["record", "--folder", str(folder), "--teleoperator", "fake", *ROBOT]
    record += ["--episode-s", "0.2", "--reset-s", "0", "--episodes", "2"]
    assert main(record) == 1  # it would overwrite the episode
    assert main([*record, "--resume"]) == 0
    dataset = LeRobotDemonstrations.from_folder(folder, cache_folder=tmp_path)
    assert (dataset.num_episodes, len(dataset)) == (2, 3 + 4)
