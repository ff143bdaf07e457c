from __future__ import annotations

import pytest
from robot_runs import make_run

from torchrl_vla.runtime import LiveView, PlainRollout, run_strategy


def test_a_run_is_written_to_a_file_that_the_viewer_opens(tmp_path):
    rerun = pytest.importorskip("rerun")
    run, robot = make_run(duration_s=1.0, image_size=16)
    view = LiveView(run.robot_env, tmp_path / "run.rrd")
    run.listeners.append(view)
    run_strategy(PlainRollout(), run)
    view.close()
    assert len(robot.sent) == 10
    content = (tmp_path / "run.rrd").read_bytes()
    assert content[:3] == b"RRF"
    for path in (
        "camera/front",
        "camera/wrist",
        "joint/shoulder/sent",
        "latency/period_ms",
    ):
        assert path.encode() in content
    assert rerun.__version__
