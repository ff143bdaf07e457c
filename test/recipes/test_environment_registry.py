from __future__ import annotations

from typing import get_args

import pytest

from torchrl_vla.recipes import (
    DEMO_SETTINGS,
    ENVIRONMENTS,
    ExpertEnvironmentName,
    make_environment,
)


def test_every_environment_with_an_expert_has_demo_settings():
    experts = {name for name, known in ENVIRONMENTS.items() if known.noise is not None}
    assert set(DEMO_SETTINGS) == experts == set(get_args(ExpertEnvironmentName))


def test_every_instruction_gets_as_many_demonstrations():
    for name, settings in DEMO_SETTINGS.items():
        env = make_environment(name, num_envs=1)
        assert settings.demonstrations % len(env.instructions) == 0
        env.close()


def test_the_tabletop_takes_tasks_and_image_size():
    env = make_environment("tabletop", tasks=("push",), num_envs=2, image_size=24)
    assert env.reset()["observation", "image"].shape == (2, 3, 24, 24)
    assert all(text.startswith("push") for text in env.instructions.texts)


def test_metaworld_has_no_images_unless_asked():
    env = make_environment("metaworld", tasks=("reach",), num_envs=1, seed=0)
    assert ("observation", "image") not in env.reset().keys(True)
    env.close()


@pytest.mark.usefixtures("opengl")
def test_metaworld_has_images_of_the_size_that_was_asked_for():
    env = make_environment("metaworld", tasks=("reach",), num_envs=1, image_size=16)
    assert env.reset()["observation", "image"].shape == (1, 3, 16, 16)
    env.close()


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError, match=r"one of \('tabletop', .*'aloha'\) or .* got 'kitchen'\.$"
    ):
        make_environment("kitchen")
    with pytest.raises(ValueError, match=r"got 'tabeltop'\. Did you mean 'tabletop'\?"):
        make_environment("tabeltop")
    with pytest.raises(ValueError, match=r"Did you mean 'insertion'\?"):
        make_environment("aloha", tasks=("insertoin",))


def test_a_function_of_the_user_gets_what_it_declares():
    env = make_environment("own_parts:make_env", num_envs=3, seed=1)
    assert env.batch_size == (3,)
    with pytest.raises(ValueError, match=r"take \['image_size'\] .* would ignore"):
        make_environment("own_parts:make_env", num_envs=3, image_size=8)
    with pytest.raises(ValueError, match=r"from 'fractions:Fraction', got Fraction\."):
        make_environment("fractions:Fraction")


def test_pusht_shows_its_image_and_where_the_block_is():
    env = make_environment("pusht", num_envs=2, image_size=24, seed=0)
    td = env.reset()
    assert td["observation", "image"].shape == (2, 3, 24, 24)
    assert td["observation", "environment_state"].shape == (2, 16)
    env.close()


def test_aloha_does_the_task_that_was_asked_for():
    env = make_environment("aloha", tasks=("transfer_cube",), num_envs=1)
    assert env.metadata.dataset_id == "aloha_transfer_cube"
    env.close()


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        (
            "pusht",
            {"tasks": ("reach",)},
            r"one task of \('push-t',\).*got \('reach',\)",
        ),
        (
            "aloha",
            {"tasks": ("insertion", "transfer_cube")},
            "one task of .* for 'aloha'",
        ),
        ("aloha", {"image_size": 64}, "480 x 640 pixels, got 64"),
    ],
)
def test_what_an_environment_does_not_have_is_refused(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_environment(name, **kwargs)


def test_a_task_can_be_a_part_of_the_name():
    env = make_environment("metaworld/reach", num_envs=1)
    assert env.tasks == ("reach",)
    env.close()
    assert make_environment("tabletop/push").tasks == ("push",)


@pytest.mark.parametrize(
    ("tasks", "texts"),
    [
        (("reach-red",), ("reach the red block",)),
        (
            ("reach-red", "reach-blue"),
            ("reach the red block", "reach the blue block"),
        ),
    ],
)
def test_a_tabletop_task_can_name_its_colours(tasks, texts):
    assert make_environment("tabletop", tasks=tasks).instructions.texts == texts


@pytest.mark.parametrize(
    ("name", "tasks", "message"),
    [
        ("metaworld/reach", ("push",), "expected tasks in one place, got 'metaworld'"),
        ("tabletop", ("reach-red", "push"), "every task with every colour"),
        ("tabletop", ("reach-pink",), "colors from .*got .'pink',"),
        ("metaworld/fly", (), "fly"),
    ],
)
def test_tasks_that_make_no_sense_are_refused(name, tasks, message):
    with pytest.raises(ValueError, match=message):
        make_environment(name, tasks=tasks)


@pytest.mark.parametrize("name", ["tabletop", "pusht"])
def test_an_environment_may_draw_on_demand(name):
    env = make_environment(name, num_envs=2, image_size=16, render_on_demand=True)
    assert not env.reset()["image_is_stale"].any()
    env.close()


def test_drawing_on_demand_takes_images():
    with pytest.raises(ValueError, match=r"^MetaWorldEnv: expected images that are"):
        make_environment("metaworld/reach", render_on_demand=True)
