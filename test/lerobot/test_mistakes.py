"""Refusal of mistakes that LeRobot answers with wrong numbers, with the fix."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from lerobot_checkpoints import TWO, make_policy, make_processors, observe
from tensordict import TensorDict

from torchrl_vla.execution import (
    ActionGuard,
    EmbodimentContract,
    MultiStepActorWrapper,
)
from torchrl_vla.policies import LeRobotPipeline, LeRobotPolicyWrapper
from torchrl_vla.policies.lerobot import KINDS, PolicyKind
from torchrl_vla.schema import (
    ActionGuardError,
    InstructionTable,
    MissingKeyError,
    SchemaError,
    UnknownInstructionError,
)

pytestmark = pytest.mark.lerobot


def load(made, **options) -> LeRobotPolicyWrapper:
    return LeRobotPolicyWrapper.from_pretrained(made.folder, **options)


@pytest.fixture
def moved(checkpoint, tmp_path):
    """Return a copy of a checkpoint that a test may damage."""

    def copy(name: str):
        folder = tmp_path / "copy"
        shutil.copytree(checkpoint(name).folder, folder)
        return folder

    return copy


@pytest.mark.parametrize("name", ["act-cameras", "smolvla"])
def test_uint8_images_and_floats_in_0_to_1_are_the_same_to_every_policy(
    name, checkpoint
):
    made = checkpoint(name)
    policy, (td,) = load(made), observe(made, 1, 2)
    as_float = td.clone()
    images = td["observation", "image"].apply(lambda image: image.float() / 255)
    as_float["observation", "image"] = images
    torch.manual_seed(0)
    expected = policy(td)["action_chunk"]
    torch.manual_seed(0)
    assert torch.equal(policy(as_float)["action_chunk"], expected)


@pytest.mark.parametrize("name", ["act-cameras", "smolvla", "diffusion-camera"])
def test_floats_in_0_to_255_are_refused(name, checkpoint):
    made = checkpoint(name)
    policy, (td,) = load(made), observe(made, 1, 2)
    root = "observation_history" if policy.history_size > 1 else "observation"
    if policy.history_size > 1:
        policy.make_environment_transform()[0].begin(td)
    images = td[root, "image"]
    td[root, "image"] = (
        images.float()
        if isinstance(images, torch.Tensor)
        else images.apply(lambda image: image.float())
    )
    with pytest.raises(SchemaError, match=r"float images in 0\.\.1.*Divide by 255"):
        policy(td)


def test_images_of_another_size_are_refused_where_the_policy_does_not_resize(
    checkpoint,
):
    made = checkpoint("act-cameras")
    policy, (td,) = load(made), observe(made, 1, 2)
    small = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    td["observation", "image", "wrist"] = small
    with pytest.raises(
        SchemaError,
        match=r"\[3, 48, 48\] from camera .*wrist.*got \[3, 32, 32\].*Resize",
    ):
        policy(td)
    made = checkpoint("smolvla")  # brings every image to 128 x 128 itself
    policy, (td,) = load(made), observe(made, 1, 2)
    td["observation", "image", "wrist"] = small
    assert policy(td)["action_chunk"].shape == (2, 10, 7)


@pytest.mark.parametrize("name", ["act-cameras", "smolvla"])
def test_a_missing_and_a_misnamed_camera_are_refused_and_both_sides_listed(
    name, checkpoint
):
    made = checkpoint(name)
    policy, (td,) = load(made), observe(made, 1, 2)
    gone = td.clone()
    del gone["observation", "image", "wrist"]
    with pytest.raises(
        SchemaError, match=r"the policy's \['observation.images.wrist'\].*robot's \[\]"
    ):
        policy(gone)
    renamed = td.clone()
    renamed["observation", "image"].rename_key_("wrist", "gripper")
    with pytest.raises(
        SchemaError,
        match=r"policy's \['observation.images.wrist'\] and the robot's "
        r"\['observation.images.gripper'\]\. Pair them with rename_map",
    ):
        policy(renamed)


def test_a_rename_map_pairs_cameras_and_hides_others(checkpoint):
    made = checkpoint("act-cameras")
    (td,) = observe(made, 1, 2)
    expected = load(made)(td.clone())["action_chunk"]
    other = td.clone()
    other["observation", "image"].rename_key_("wrist", "gripper")
    other["observation", "image", "ceiling"] = torch.zeros(2, 3, 9, 9)
    maps = [
        {"gripper": "wrist", "ceiling": None},
        {
            "observation.images.gripper": "observation.images.wrist",
            "observation.images.ceiling": None,
        },
    ]
    for rename_map in maps:
        policy = load(made, rename_map=rename_map)
        assert torch.equal(policy(other.clone())["action_chunk"], expected)


def test_an_absent_camera_has_to_be_declared_and_to_be_the_policys(checkpoint):
    made = checkpoint("smolvla")
    (td,) = observe(made, 1, 2)
    del td["observation", "image", "wrist"]
    policy = load(made, empty_cameras=["wrist"])
    assert policy(td)["action_chunk"].shape == (2, 10, 7)
    with pytest.raises(SchemaError, match=r"'empty_cameras', got \['ceiling'\]"):
        load(made, empty_cameras=["ceiling"])


def test_lerobots_own_empty_cameras_are_not_required_of_the_robot(tiny_vlm):
    policy = make_policy("smolvla", tiny_vlm, empty_cameras=1)
    assert "observation.images.empty_camera_0" in policy.config.input_features
    before, after = make_processors(policy)
    wrapper = LeRobotPolicyWrapper(policy, pipeline=LeRobotPipeline(before, after))
    (td,) = observe(
        type("Made", (), {"cameras": TWO, "environment_state": False}), 1, 2
    )
    assert wrapper(td)["action_chunk"].shape == (2, 10, 7)


def test_a_task_is_needed_by_policies_that_read_it_and_by_no_other(checkpoint):
    made = checkpoint("smolvla")
    policy, (td,) = load(made), observe(made, 1, 2)
    with pytest.raises(MissingKeyError, match=r"input at 'language_instruction'"):
        policy(td.exclude("language_instruction"))
    ids = td.clone()
    ids["language_instruction"] = torch.tensor([1, 2])
    with pytest.raises(UnknownInstructionError, match="table for the instruction ids"):
        policy(ids)
    table = InstructionTable()
    ids["language_instruction"] = table.encode(td["language_instruction"])
    named = load(made, instructions=table)
    torch.manual_seed(0)
    expected = policy(td)["action_chunk"]
    torch.manual_seed(0)
    assert torch.equal(named(ids)["action_chunk"], expected)
    made = checkpoint("act")
    (td,) = observe(made, 1, 2)
    assert "language_instruction" not in load(made).in_keys
    load(made)(td.exclude("language_instruction"))


def test_a_float64_state_is_read_and_one_of_another_width_refused(checkpoint):
    made = checkpoint("act")
    policy, (td,) = load(made), observe(made, 1, 2)
    expected = policy(td.clone())["action_chunk"]
    td["observation", "state"] = td["observation", "state"].double()
    assert torch.equal(policy(td.clone())["action_chunk"], expected)
    td["observation", "state"] = torch.zeros(2, 6)
    with pytest.raises(
        SchemaError, match=r"expected 5 numbers at 'observation\.state'"
    ):
        policy(td)


def test_a_policy_with_a_history_needs_it(checkpoint):
    made = checkpoint("diffusion")
    policy, (td,) = load(made), observe(made, 1, 2)
    with pytest.raises(
        MissingKeyError, match=r"reads 2 observations.*make_environment_transfo"
    ):
        policy(td)


def test_a_planner_needs_its_plan_in_mid_episode(checkpoint):
    made = checkpoint("tdmpc")
    policy, (td,) = load(made), observe(made, 1, 2)
    policy(td)
    td["is_init"] = torch.tensor([[True], [False]])
    with pytest.raises(MissingKeyError, match=r"'policy_plan'.*make_environment_trans"):
        policy(td.exclude("next"))


def test_a_policy_without_processors_is_refused():
    policy = make_policy("act")
    with pytest.raises(SchemaError, match=r"ACTPolicy with its preprocessor and post"):
        LeRobotPolicyWrapper(policy)


def test_processors_without_statistics_are_refused():
    from lerobot.policies.factory import make_pre_post_processors

    policy = make_policy("act")
    before, after = make_pre_post_processors(policy.config)
    with pytest.raises(
        SchemaError,
        match=r"no statistics of \['observation\.state \(MEAN_STD.*action \(MEAN_STD",
    ):
        LeRobotPolicyWrapper(policy, pipeline=LeRobotPipeline(before, after))


def test_a_checkpoint_without_processor_files_is_refused(moved):
    folder = moved("act")
    (folder / "policy_preprocessor.json").unlink()
    with pytest.raises(
        SchemaError,
        match=r"no \['policy_preprocessor\.json'\]\. Without its processors",
    ):
        LeRobotPolicyWrapper.from_pretrained(folder)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(SchemaError, match=r"'config\.json' and .*got \['notes\.txt'\]"):
        LeRobotPolicyWrapper.from_pretrained(tmp_path)


def test_a_path_to_nothing_and_an_unknown_repo_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder\. Check the path"):
        LeRobotPolicyWrapper.from_pretrained(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"checkpoint folder or a repo id"):
        LeRobotPolicyWrapper.from_pretrained("outputs/train/last")
    with pytest.raises(FileNotFoundError, match=r"Hub has, got 'nobody/nothing'"):
        LeRobotPolicyWrapper.from_pretrained("nobody/nothing")


def test_the_folder_around_a_trained_model_is_understood(checkpoint):
    made = checkpoint("act")
    assert made.folder.name == "pretrained_model"
    around = LeRobotPolicyWrapper.from_pretrained(made.folder.parent)
    assert around.config.type == "act"


def test_a_repo_id_is_loaded_from_the_hubs_cache(checkpoint, tmp_path):
    made = checkpoint("act")
    repo = tmp_path / "models--team--act"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    (repo / "refs" / "v2").write_text("0" * 40)
    shutil.copytree(made.folder, repo / "snapshots" / ("0" * 40))
    for revision in (None, "v2"):
        policy = LeRobotPolicyWrapper.from_pretrained(
            "team/act", cache_folder=tmp_path, revision=revision
        )
        assert policy.config.type == "act"
    with pytest.raises(FileNotFoundError, match=r"revision v3"):
        LeRobotPolicyWrapper.from_pretrained(
            "team/act", cache_folder=tmp_path, revision="v3"
        )


def test_a_moved_tokenizer_is_named_and_can_be_pointed_to(
    checkpoint, tiny_vlm, tmp_path
):
    made = checkpoint("smolvla")
    folder, gone = tmp_path / "copy", str(tmp_path / "gone")
    shutil.copytree(made.folder, folder)
    for name in ("config.json", "policy_preprocessor.json"):
        path = folder / name
        path.write_text(path.read_text().replace(str(tiny_vlm), gone))
    with pytest.raises(
        SchemaError, match=r"overrides=\{'vlm_model_name': folder\}.*'tokenizer_proces"
    ):
        LeRobotPolicyWrapper.from_pretrained(folder)
    with pytest.raises(SchemaError, match=r"expected the processors of the checkpoint"):
        LeRobotPolicyWrapper.from_pretrained(
            folder, overrides={"vlm_model_name": str(tiny_vlm)}
        )
    policy = LeRobotPolicyWrapper.from_pretrained(
        folder,
        overrides={"vlm_model_name": str(tiny_vlm)},
        processor_overrides={"tokenizer_processor": {"tokenizer_name": str(tiny_vlm)}},
    )
    (td,) = observe(made, 1, 2)
    original = load(made)
    torch.manual_seed(0)
    expected = original(td.clone())["action_chunk"]
    torch.manual_seed(0)
    assert torch.equal(policy(td)["action_chunk"], expected)


def test_weights_of_another_configuration_are_refused(moved):
    folder = moved("act")
    with pytest.raises(SchemaError, match=r"weights that fit the configuration"):
        LeRobotPolicyWrapper.from_pretrained(folder, overrides={"dim_model": 48})
    with pytest.raises(SchemaError, match=r"got none for .*would stay random"):
        LeRobotPolicyWrapper.from_pretrained(folder, overrides={"n_encoder_layers": 2})


def test_unknown_overrides_are_refused(checkpoint):
    with pytest.raises(
        SchemaError, match=r"'overrides', got \['chunksize'\].*chunk_siz"
    ):
        load(checkpoint("act"), overrides={"chunksize": 3})


def test_sizes_that_contradict_the_policy_are_refused(checkpoint):
    with pytest.raises(
        ValueError, match=r"chunk_size=10, as the policy's config.*got 4"
    ):
        load(checkpoint("act"), chunk_size=4)
    with pytest.raises(ValueError, match=r"expected action_dim and chunk_size for Obj"):
        LeRobotPolicyWrapper(type("Obj", (), {"__call__": lambda s, b: b})())


def test_temporal_ensembling_is_refused(checkpoint):
    overrides = {"temporal_ensemble_coeff": 0.01, "n_action_steps": 1}
    with pytest.raises(SchemaError, match=r"temporal_ensemble_coeff=0\.01.*overrides="):
        load(checkpoint("act"), overrides=overrides)


def test_a_type_that_was_not_exercised_says_why(moved):
    folder = moved("act")
    import lerobot

    old = lerobot.__version__.startswith("0.4")
    name = "sac" if old else "gaussian_actor"
    from lerobot.policies.factory import make_policy_config

    config = make_policy_config(name, device="cpu", push_to_hub=False)
    config.save_pretrained(folder)
    with pytest.raises(SchemaError, match=rf"got '{name}': it has no chunk"):
        LeRobotPolicyWrapper.from_pretrained(folder)


def test_a_type_of_ones_own_is_one_entry_of_the_registry(checkpoint, monkeypatch):
    made = checkpoint("act")
    (td,) = observe(made, 1, 2)
    expected = load(made)(td.clone())["action_chunk"]
    monkeypatch.delitem(KINDS, "act")
    with pytest.raises(SchemaError, match=r"KINDS\['act'\] = PolicyKind\(reads_text="):
        load(made)
    monkeypatch.setitem(KINDS, "act", PolicyKind())
    assert torch.equal(load(made)(td)["action_chunk"], expected)


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"pipeline": None}, "pass rename_map, empty_cameras, dtype"),
        ({"camera_name": "top"}, "pair them with rename_map"),
        ({"use_state": False}, "configuration says which states"),
    ],
)
def test_an_argument_without_effect_on_a_checkpoint_is_refused_before_loading(
    options, advice, tmp_path
):
    (name,) = options
    with pytest.raises(
        ValueError, match=rf"expected no {name} beside a checkpoint, got .*{advice}"
    ):
        LeRobotPolicyWrapper.from_pretrained(tmp_path / "nothing", **options)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            {"camera_name": "top"},
            r"no camera_name for ACTPolicy, got 'top'\. .*rena",
        ),
        (
            {"use_state": False},
            r"no use_state for ACTPolicy, got False\. .*leave it",
        ),
        ({"image_key": "rgb"}, r"no image_key for ACTPolicy, whose .*got 'rgb'"),
        ({"instruction_key": "text"}, r"no instruction_key for ACTPolicy, .*'text'"),
        (
            {"state_key": None},
            r"state_key=\.\.\. for ACTPolicy, whose .*got None\. Name",
        ),
        ({"action_dim": 6}, r"action_dim=7, as the policy's config.* got 6"),
    ],
)
def test_an_argument_without_effect_on_a_lerobot_policy_is_refused(options, problem):
    policy = make_policy("act")
    pipeline = LeRobotPipeline(*make_processors(policy))
    with pytest.raises(ValueError, match=problem):
        LeRobotPolicyWrapper(policy, pipeline=pipeline, **options)


def test_a_codebook_that_was_never_trained_is_refused(checkpoint):
    made = checkpoint("vqbet")
    policy = load(made)
    policy.policy.vqbet.action_head.vqvae_model.discretized.fill_(False)
    (td,) = observe(made, 1, 2)
    policy.make_environment_transform()[0].begin(td)
    with pytest.raises(SchemaError, match=r"codes are still random"):
        policy(td)


def test_a_batch_that_changes_its_size_in_mid_episode_is_refused(checkpoint):
    """LeRobot's queue would serve the old batch's actions."""
    made = checkpoint("act")
    policy = load(made)
    actor = MultiStepActorWrapper(policy, replan_interval=policy.n_action_steps)
    first, second = observe(made, 2, 3)
    actor(first)
    with pytest.raises(Exception, match=r"expected batch size \[3\]"):
        actor(second[:2])


def test_a_chunk_beyond_the_contract_is_refused_and_writes_nothing(checkpoint):
    made = checkpoint("act")
    (td,) = observe(made, 1, 2)
    wide = EmbodimentContract(
        "arm", 7, action_horizon=10, action_low=(-99,) * 7, action_high=(99,) * 7
    )
    expected = load(made)(td.clone())["action_chunk"]
    guarded = ActionGuard(load(made), wide)
    assert torch.equal(guarded(td.clone())["action_chunk"], expected)
    narrow = EmbodimentContract("arm", 7, action_low=(-9,) * 7, action_high=(-8,) * 7)
    with pytest.raises(ActionGuardError, match="No action was sent"):
        ActionGuard(load(made), narrow)(td)
    assert "action_chunk" not in td
    with pytest.raises(ActionGuardError, match="expected action dimension A = 6"):
        ActionGuard(load(made), EmbodimentContract("arm", 6))(td)


def test_environment_variables_choose_the_checkpoint(checkpoint):
    made = checkpoint("act")
    variables = {"LEROBOT_POLICY_PATH": str(made.folder), "LEROBOT_DEVICE": "cpu"}
    policy = LeRobotPolicyWrapper.from_environment(variables)
    assert policy.config.type == "act"
    with pytest.raises(ValueError, match=r"LEROBOT_POLICY_TYPE='diffusion'.*got 'act'"):
        LeRobotPolicyWrapper.from_environment(
            {**variables, "LEROBOT_POLICY_TYPE": "diffusion"}
        )
    with pytest.raises(ValueError, match=r"LEROBOT_EMBODIMENT_TAG='aloha'.*got 'arm'"):
        LeRobotPolicyWrapper.from_environment(
            {**variables, "LEROBOT_EMBODIMENT_TAG": "aloha"},
            embodiment_tag="arm",
        )
    with pytest.raises(ValueError, match="expected a folder or repo id in LEROBOT"):
        LeRobotPolicyWrapper.from_environment({})


def test_extra_entries_of_the_tensordict_do_not_reach_the_policy(checkpoint):
    made = checkpoint("act")
    policy, (td,) = load(made), observe(made, 1, 2)
    expected = policy(td.clone())["action_chunk"]
    td["observation", "tactile"] = torch.randn(2, 9)
    td["action"] = torch.randn(2, 7)
    assert torch.equal(policy(td)["action_chunk"], expected)


def test_the_relative_position_of_configuration_files_is_plain_json(checkpoint):
    """A saved checkpoint names its type, so LeRobot finds the class by itself."""
    folder = checkpoint("act").folder
    assert json.loads((folder / "config.json").read_text())["type"] == "act"


def test_no_policy_writes_into_what_it_reads(checkpoint):
    for name in ("act-cameras", "smolvla", "tdmpc"):
        made = checkpoint(name)
        (td,) = observe(made, 1, 2)
        before = td.clone()
        load(made)(td)
        changed = td.select("observation", "is_init")
        assert isinstance(changed, TensorDict)
        assert (changed == before.select("observation", "is_init")).all()
