"""TemporalEnsemble and LeRobot's own ensembler, with a real ACT."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch
from lerobot_checkpoints import ACT, A, Made, S, make_policy, make_processors, observe
from lerobot_streams import lerobot_actions
from tensordict import TensorDict
from tensordict.nn import TensorDictModule

from torchrl_vla.cli.main import main
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.execution import MultiStepActorWrapper, TemporalEnsemble
from torchrl_vla.policies import (
    LeRobotPolicyWrapper,
    load_lerobot_policy,
    make_lerobot_policy,
)
from torchrl_vla.recipes import load_executor, save_checkpoint
from torchrl_vla.schema import FeatureStatistics, RobotDatasetMetadata, SchemaError

pytestmark = pytest.mark.lerobot

COEFFICIENT = 0.1
STEPS = 17  # an episode longer than a chunk of 10 and no multiple of it
ROBOT = RobotDatasetMetadata("robot", action_dim=A, state_dim=S)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    """An ACT that LeRobot runs with temporal ensembling, on disk."""
    folder = tmp_path_factory.mktemp("ensemble") / "act"
    options = {"temporal_ensemble_coeff": COEFFICIENT, "n_action_steps": 1}
    policy = make_policy("act", **options)
    policy.save_pretrained(folder)
    for processor in make_processors(policy):
        processor.save_pretrained(folder)
    return Made(folder, (), environment_state=True, reads_text=False)


@pytest.mark.parametrize("rows", [1, 3])
def test_equals_lerobots_own_loop_through_whole_episodes(made, rows):
    actor = load_executor(made.folder, metadata=ROBOT)
    assert isinstance(actor, TemporalEnsemble)
    assert actor.coefficient == COEFFICIENT
    for episode in range(2):  # the second begins with what the first left behind
        frames = observe(made, STEPS, rows, seed=episode)
        expected = lerobot_actions(made.folder, frames, seed=0)
        with torch.no_grad():
            got = [actor(td)["action"] for td in frames]
        # LeRobot averages before it denormalizes, we after: the same numbers up to
        # float32's rounding, which is 1.2e-7 of numbers near 1, a few times over.
        torch.testing.assert_close(
            torch.stack(got), torch.stack(expected), rtol=1e-5, atol=2e-6
        )


def test_rows_that_begin_at_different_steps_equal_one_ensembler_each(made):
    from lerobot.policies.act.modeling_act import ACTTemporalEnsembler

    generator = torch.Generator().manual_seed(0)
    begins = torch.rand(40, 4, generator=generator) < 0.15
    begins[0] = True
    chunks = torch.randn(40, 4, 10, A, generator=generator)
    said = iter(chunks)
    actor = TensorDictModule(
        lambda _: next(said), in_keys=["clock"], out_keys=["action_chunk"]
    )
    executor = TemporalEnsemble(
        actor, action_reference="absolute", coefficient=COEFFICIENT
    )
    theirs = [ACTTemporalEnsembler(COEFFICIENT, 10) for _ in range(4)]
    for step in range(40):
        td = TensorDict(
            {"clock": torch.zeros(4, 1), "is_init": begins[step, :, None]}, [4]
        )
        got = executor(td)["action"]
        for row, ensembler in enumerate(theirs):
            if begins[step, row]:
                ensembler.reset()
            expected = ensembler.update(chunks[step, row : row + 1])
            assert torch.equal(got[row], expected[0])  # bit for bit


def test_the_coefficient_can_be_overridden_and_taken_away(made):
    half = {"temporal_ensemble_coeff": 0.5}
    actor = load_executor(made.folder, metadata=ROBOT, overrides=half)
    assert actor.coefficient == 0.5
    plain = {"temporal_ensemble_coeff": None, "n_action_steps": 4}
    actor = load_executor(made.folder, metadata=ROBOT, overrides=plain)
    assert isinstance(actor, MultiStepActorWrapper)
    assert actor.replan_interval == 4


def test_the_wrapper_alone_names_the_loader_that_averages(made):
    message = r"temporal_ensemble_coeff=0\.1: .*torchrl_vla\.recipes\.load_executor\("
    with pytest.raises(SchemaError, match=message):
        LeRobotPolicyWrapper.from_pretrained(made.folder)


def test_a_policy_for_an_executor_knows_its_coefficient_and_is_saved_with_it(
    made, tmp_path
):
    policy = load_lerobot_policy(made.folder)
    assert policy.ensemble_coefficient == COEFFICIENT
    policy.to_folder(tmp_path / "again")
    assert policy.config.temporal_ensemble_coeff is None
    again = load_lerobot_policy(tmp_path / "again")
    assert again.ensemble_coefficient == COEFFICIENT
    whole = {"temporal_ensemble_coeff": None}
    assert (
        load_lerobot_policy(made.folder, overrides=whole).ensemble_coefficient is None
    )


def test_an_interval_for_an_ensemble_is_refused(made):
    assert isinstance(
        load_executor(made.folder, metadata=ROBOT, replan_interval=1), TemporalEnsemble
    )
    with pytest.raises(SchemaError, match=r"called at every step, got 4\. Execute"):
        load_executor(made.folder, metadata=ROBOT, replan_interval=4)


def test_chunks_that_are_relative_to_a_state_are_not_averaged(made, tmp_path):
    folder = shutil.copytree(made.folder, tmp_path / "relative")
    metadata = dataclasses.replace(ROBOT, action_reference="relative")
    (folder / "metadata.json").write_text(metadata.to_json())
    with pytest.raises(ValueError, match=r"^TemporalEnsemble: .*got 'relative'"):
        load_executor(folder, metadata=metadata)


def test_the_command_line_evaluates_an_ensemble(tmp_path, capsys):
    env = TabletopEnv(2, image_size=32, colors=("red",))
    samples = torch.linspace(-1, 1, 101)[:, None].expand(-1, 2)
    statistics = FeatureStatistics.from_samples(samples)
    metadata = dataclasses.replace(
        env.metadata, action_statistics=statistics, state_statistics=statistics
    )
    policy = make_lerobot_policy(
        "act",
        metadata,
        image_sizes={None: (3, 32, 32)},
        instructions=env.instructions,
        config={**ACT, "chunk_size": 6},
    )
    folder = save_checkpoint(tmp_path / "act", policy, None, metadata)
    config = json.loads((folder / "config.json").read_text())
    config |= {"temporal_ensemble_coeff": COEFFICIENT, "n_action_steps": 1}
    (folder / "config.json").write_text(json.dumps(config))
    where = ["--policy", str(folder), "--env", "tabletop/reach-red"]
    options = ["--episodes", "3", "--image-size", "32", "--num-envs", "2"]
    assert main(["evaluate", *where, *options]) == 0
    assert "over 3 episodes" in capsys.readouterr().out
