from __future__ import annotations

import pytest

from torchrl_vla.recipes import DEMO_SETTINGS, ENVIRONMENTS, make_environment


def test_every_known_environment_has_demo_settings():
    assert set(DEMO_SETTINGS) == set(ENVIRONMENTS)


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
        ValueError, match=r"expected one of \('tabletop', 'metaworld'\)"
    ):
        make_environment("kitchen")
