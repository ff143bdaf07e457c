"""What the documents say is refused: where, and the tests that try it there."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import torchrl_vla
from torchrl_vla.cli.main import main

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "silent_errors.md").read_text()
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ")][1:]
NAMED = re.findall(r"`(test/[\w/]+\.py)::(\w+)`", PAGE)
PUBLIC = {
    name
    for module in pkgutil.iter_modules(torchrl_vla.__path__)
    for name in getattr(
        importlib.import_module(f"torchrl_vla.{module.name}"), "__all__", ()
    )
}
README = (ROOT / "README.md").read_text()
SENTENCES = README.split("## What it refuses")[1].split("\n##")[0].split("\n- ")[1:]

#: Tests behind the sentences of the README, in their order.
TESTS = [
    [
        "objectives/test_pad_masks.py::test_a_mask_that_can_only_be_inverted_raises_in_ev"
    ],
    ["transforms/test_action_chunk.py::test_a_flat_sample_without_a_storage_raises"],
    [
        "transforms/test_affine_scaling.py::test_statistics_that_cannot_be_raise",
        "spaces/test_model_space.py::test_",
        "tokenizers/test_uniform.py::test_bounds_that_cannot_be_raise",
    ],
    [
        "spaces/test_model_space.py::test_",
        "recipes/test_metadata_meet.py::test_a_module_of_the_users_refuses_images_of_a",
    ],
    [
        "test_action_border_everywhere.py::test_no_environment_executes_what_is_no_num",
        "execution/guard/test_action_guard.py::test_",
    ],
    [
        "recipes/test_metadata_meet.py::test_evaluate_compares_the_environment",
        "recipes/test_metadata_meet.py::test_finetune_compares_the_policy_with_env",
    ],
    [
        "data/test_label_bounds.py::test_every_entry_point_refuses_labels_beyond",
        "recipes/test_metadata_meet.py::test_labels_beyond_the_bounds_are_refused",
        "lerobot/test_training_recipe.py::test_what_train_refuses_is_refused_for_lero",
    ],
    [
        "schema/test_instructions.py::test_an_unknown_id_is_refused",
        "tokenizers/test_vocab_tail.py::test_a_text_token_raises_with_its_index",
    ],
    ["execution/test_stream_watch.py::test_two_robots_that_start_together_raise"],
    ["evaluation/test_comparison.py::test_"],
    ["recipes/finetuning/test_learner.py::test_acting_in_another_precision_is_refus"],
    [
        "testing/test_training_step_checks.py::test_a_detached_head_raises_at_the_first",
        "testing/test_training_step_checks.py::test_a_fine_tuning_raises_for_a_detached",
    ],
    ["runtime/test_safety_gate.py::test_"],
    [
        "serving/test_policy_server.py::test_a_robot_that_would_be_driven_wrongly_is_refused_by",
        "serving/test_remote_policy.py::test_no_reordered_late_or_repeated_answer_is_ever",
    ],
    ["policies/test_policy_folder.py::test_"],
    [
        "test_damaged_files.py::test_lerobot_folders",
        "test_damaged_files.py::test_hdf5_files",
        "test_damaged_files.py::test_checkpoints",
    ],
]


def named_in(text):
    return re.findall(r"`(test/[\w/]+\.py)::(\w+)`", text)


def places_in(column):
    return re.findall(r"`([^`]+)`", column)


@pytest.mark.parametrize(("path", "name"), NAMED, ids=lambda part: str(part))
def test_the_test_that_the_page_names_exists(path, name):
    assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[2:40])
def test_every_row_names_public_places_and_tests_that_try_them(row, capsys):
    _, _, column, tests = (part.strip() for part in row.strip("|").split(" | "))
    places, found = places_in(column), named_in(tests)
    assert places
    assert found
    tried = "".join((ROOT / path).read_text() for path in {path for path, _ in found})
    for place in places:
        command = place.removeprefix("torchrl-vla ")
        if command != place:
            with pytest.raises(SystemExit, match="0"):
                main([command, "--help"])
        else:
            assert place in PUBLIC
        assert re.search(rf"\b{command}\b", tried), place


@pytest.mark.parametrize(
    ("sentence", "tests"),
    list(zip(SENTENCES, TESTS, strict=True)),
    ids=[sentence[:30] for sentence in SENTENCES],
)
def test_a_sentence_of_the_readme_names_places_that_its_tests_try(sentence, tests):
    tried = ""
    for path, _, name in (test.partition("::") for test in tests):
        text = (ROOT / "test" / path).read_text()
        assert re.search(rf"^def {name}", text, re.MULTILINE), (path, name)
        tried += text
    places = places_in(sentence)
    assert places
    for place in places:
        assert place in PUBLIC
        assert re.search(rf"\b{place}\b", tried), place
