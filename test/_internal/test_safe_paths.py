"""No text leads out of its root, whatever it contains."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from torchrl_vla._internal.file_origin import Origin
from torchrl_vla._internal.safe_paths import check_name, fill_template, path_below
from torchrl_vla.schema import SchemaError

ORIGIN = Origin("Reader", "'info.json'", "Fetch it again.")
OUTSIDE = [
    *("", ".", "..", "/etc/passwd", "../a", "a/../../b", "a/..", "a//b", "a/"),
    *("C:/a", "c:a", "..\\a", "\\\\host\\a", "a\0b", "a\nb", "a" * 256, "\ud800"),
]


@pytest.mark.parametrize("text", OUTSIDE)
def test_paths_that_leave_their_root_are_refused(tmp_path, text):
    with pytest.raises(SchemaError, match=r"Reader: expected a path below .* the film"):
        path_below(ORIGIN, tmp_path, text, "the film")


@pytest.mark.parametrize("text", [*OUTSIDE, "a/b"])
def test_names_with_folders_are_refused(text):
    with pytest.raises(SchemaError, match=r"expected a plain name, .* for a camera"):
        check_name(ORIGIN, text, "a camera")


@given(st.text(alphabet="ab./\\:~\0é", max_size=8))
@example("a/..")
def test_whatever_the_text_a_path_stays_below_its_root(tmp_path_factory, text):
    root = tmp_path_factory.getbasetemp()
    try:
        path = path_below(ORIGIN, root, text, "the film")
    except SchemaError:
        return
    assert path != root
    assert path.resolve().is_relative_to(root.resolve())
    assert path == root / text


def test_links_may_lead_below_the_root_and_not_out_of_it(tmp_path):
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (tmp_path / "secret").write_text("s")
    (root / "inside").symlink_to(root / "a")
    (root / "outside").symlink_to(tmp_path)
    (root / "loop").symlink_to(root / "loop")
    assert path_below(ORIGIN, root, "inside/b", "the film") == root / "inside/b"
    with pytest.raises(
        SchemaError, match=r"got 'outside/secret', a link to '.*secret'"
    ):
        path_below(ORIGIN, root, "outside/secret", "the film")


def test_the_hubs_own_links_are_followed(tmp_path):
    snapshot, blobs = tmp_path / "d/snapshots/abc", tmp_path / "d/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "1f").write_text("x")
    (snapshot / "a.json").symlink_to("../../blobs/1f")
    (snapshot / "b.json").symlink_to("../../refs")
    assert path_below(ORIGIN, snapshot, "a.json", "it").read_text() == "x"
    with pytest.raises(SchemaError, match="a link to"):
        path_below(ORIGIN, snapshot, "b.json", "it")


def test_a_template_is_filled():
    values = {"video_key": "front", "chunk_index": 1, "file_index": 23}
    template = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index}.mp4"
    expected = "videos/front/chunk-001/file-23.mp4"
    assert fill_template(ORIGIN, template, values, "video_path") == expected
    assert expected == template.format(**values)


@pytest.mark.parametrize(
    "template",
    [
        *("{chunk}", "{index.__class__}", "{index[0]}", "{0}", "{}", "{index!r}"),
        *("{index:0999999999d}", "{index", "index}", "{{index}}", "{name:03d}"),
        "{index:{index}}",
    ],
)
def test_other_fields_of_a_template_are_refused(template):
    with pytest.raises(SchemaError, match=r"a template with fields of \['index', 'na"):
        fill_template(ORIGIN, template, {"index": 5, "name": "a"}, "data_path")
