from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from torchrl_vla._internal.charts import interval_chart, line_chart


def test_a_line_has_its_ends_in_the_corners_of_the_plot():
    svg = line_chart(
        [(0, 10.0), (50, 1.0), (100, 0.1)],
        x_label="step",
        y_label="loss",
        width=640,
        height=260,
    )
    points = re.search(r'<polyline points="([^"]+)"', svg)[1].split()
    # Margins: left 72, right 24, top 12, bottom 40; one tenth is half way in log.
    assert points == ["72.0,12.0", "344.0,116.0", "616.0,220.0"]


def test_a_linear_axis_has_the_range_that_it_is_given():
    points = [(0, 50.0), (10, 100.0)]
    svg = line_chart(points, x_label="step", y_label="success", y_range=(0, 100))
    assert '<polyline points="72.0,116.0 616.0,12.0"' in svg
    assert ">75</text>" in svg


def test_an_interval_has_its_rate_and_its_ends_to_scale():
    svg = interval_chart({"after": (0.5, 0.25, 1.0)}, width=640)
    # 370 pixels from 200 on: 25 % at 292.5, 50 % at 385, 100 % at 570.
    assert 'x1="292.5" x2="570.0"' in svg
    assert 'cx="385.0"' in svg
    assert "50 %</text>" in svg


def test_charts_are_well_formed_whatever_the_names():
    name = '<after> & "before"'
    ElementTree.fromstring(interval_chart({name: (0.5, 0.1, 0.9)}))
    ElementTree.fromstring(line_chart([(0, 1), (1, 1)], x_label=name, y_label=name))


@pytest.mark.parametrize("points", [[(0, 1.0)], [(0, 1.0), (1, 0.0)]])
def test_points_that_cannot_be_drawn_are_refused(points):
    with pytest.raises(ValueError, match=r"expected at least two points, with y > 0"):
        line_chart(points, x_label="step", y_label="loss")
