from __future__ import annotations

import csv
import json
from dataclasses import replace
from html import unescape

import pytest

from torchrl_vla.data import DemonstrationDataset
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.evaluation import EvaluationResult, evaluate
from torchrl_vla.recipes import (
    DEMO_SETTINGS,
    PPO,
    FinetuneSettings,
    RunLog,
    load_checkpoint,
    load_executor,
    run_demo,
)

SETTINGS = replace(
    DEMO_SETTINGS["tabletop"],
    demonstrations=12,
    hidden=16,
    steps=30,
    batch_size=16,
    episodes=6,
    control_episodes=4,
    clips=2,
    seed=3,
    improve=FinetuneSettings(
        algorithm=PPO(critic_warmup=0), iterations=2, epochs=1, eval_interval=1
    ),
)


def make_env():
    return TabletopEnv(4, image_size=16, seed=0)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    env = make_env()
    results = run_demo(env, folder, SETTINGS, video_env=env, progress=False)
    return folder, results


def test_every_evaluation_has_its_episodes_and_is_on_disk(demo):
    folder, results = demo
    lengths = {name: len(result) for name, result in results.items()}
    assert lengths == {
        "before": 4,
        "cloned": 6,
        "after": 6,
        "shuffled instruction": 4,
        "blind": 4,
    }
    for name, result in results.items():
        path = folder / f"{name.replace(' ', '_')}.json"
        assert EvaluationResult.from_json(path) == result
        assert json.loads(path.read_text())["provenance"]["seed"] == 3


def test_evaluations_meet_other_episodes_than_the_demonstrations(demo):
    folder, results = demo
    seen = set(
        DemonstrationDataset.from_folder(folder / "dataset")
        .frames[:]["episode_seed"]
        .tolist()
    )
    assert len(seen) == 12
    assert seen.isdisjoint(episode.seed for episode in results["after"].episodes)


@pytest.mark.parametrize(
    ("name", "instructions"), [("tabletop", 6), ("metaworld", 6), ("libero", 10)]
)
def test_the_demos_have_as_many_demonstrations_of_each_instruction(name, instructions):
    assert DEMO_SETTINGS[name].demonstrations % instructions == 0


def test_each_instruction_is_demonstrated_as_often(demo):
    folder, _ = demo
    frames = DemonstrationDataset.from_folder(folder / "dataset").frames
    first = frames["frame_index"] == 0
    _, counts = frames["language_instruction"][first].unique(return_counts=True)
    assert counts.tolist() == [2] * 6


def test_the_saved_policy_gives_the_result_that_was_reported(demo):
    folder, results = demo
    env = make_env()
    actor = load_executor(folder / "policy", metadata=env.metadata)
    again = evaluate(env, actor, 6, seed=3, progress=False)
    assert again.episodes == results["after"].episodes


def test_the_report_shows_rates_intervals_curve_and_films(demo):
    folder, results = demo
    page = (folder / "report.html").read_text()
    low, high = results["after"].interval
    assert f"{100 * results['after'].success_rate:.1f} %" in page
    assert f"{100 * low:.1f} to {100 * high:.1f} %" in page
    assert page.count("data:image/png;base64,") == 2
    assert page.count("<svg") == 3
    comparison = json.loads((folder / "finetuning" / "comparison.json").read_text())
    assert comparison["summary"]["verdict"] in unescape(page)
    for text in results["after"].by_instruction():
        assert text in page
    assert len(list(folder.glob("clip_*.png"))) == 2


def test_the_learning_curve_ends_with_the_last_step(demo):
    folder, _ = demo
    with (folder / "learning_curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["25", "30"]


def test_the_clone_and_the_improved_policy_meet_the_same_episodes(demo):
    folder, results = demo
    cloned, after = results["cloned"].episodes, results["after"].episodes
    assert [episode.seed for episode in cloned] == [e.seed for e in after]
    assert len(RunLog.read(folder / "finetuning" / "log.csv")) == 2
    policy, _ = load_checkpoint(folder / "policy")
    assert type(policy).__name__ == "TinyTokenVLA"


def test_without_reinforcement_learning_the_clone_is_the_result(tmp_path):
    settings = replace(SETTINGS, improve=None, head="regression")
    results = run_demo(make_env(), tmp_path, settings, progress=False)
    assert list(results) == ["before", "after", "shuffled instruction", "blind"]
    assert len(results["after"]) == 6
    assert type(load_checkpoint(tmp_path / "policy")[0]).__name__ == "TinyVLA"
    assert "Reinforcement learning" not in (tmp_path / "report.html").read_text()


def test_the_same_seed_gives_the_same_demo(demo, tmp_path):
    _, results = demo
    again = run_demo(make_env(), tmp_path, SETTINGS, progress=False)
    assert again == results
    page = (tmp_path / "report.html").read_text()
    assert "data:image" not in page  # no video_env, no clip


def test_an_environment_that_renders_on_demand_goes_the_whole_way(tmp_path):
    settings = replace(
        SETTINGS, improve=None, head="regression", image_interval=2, clips=1
    )
    env = TabletopEnv(4, image_size=16, seed=0, render_on_demand=True)
    results = run_demo(env, tmp_path, settings, video_env=env, progress=False)
    assert len(results["after"]) == 6
    dataset = DemonstrationDataset.from_folder(tmp_path / "dataset")
    assert dataset.provenance["image_interval"] == 2
    assert len(list(tmp_path.glob("clip_*.png"))) == 1
