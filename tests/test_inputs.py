"""What a user names becomes a list of jobs, and clashes are found before any work."""

import os

import pytest

from fr_deploy.errors import UsageError
from fr_deploy.inputs import collect_inputs, plan_jobs


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def outputs(names, out, **options):
    return [
        str(job.output.relative_to(out)) for job in plan_jobs(collect_inputs(names), out, **options)
    ]


def test_a_folder_keeps_its_tree_in_order(tmp_path):
    touch(tmp_path / "in", "b.jpg", "a/2.PNG", "a/1.tif", "notes.txt", ".hidden.jpg", ".git/x.png")
    inputs = collect_inputs([str(tmp_path / "in")])
    out = tmp_path / "out"
    relative = [str(job.output.relative_to(out)) for job in plan_jobs(inputs, out)]
    assert relative == ["b.jpg", "a/1.tif", "a/2.PNG"]
    assert inputs.ignored == 2  # notes.txt and .hidden.jpg; hidden folders are not entered
    assert inputs.refusals == []


def test_photos_that_cannot_be_read_are_not_passed_over(tmp_path):
    touch(tmp_path / "in", "a.heic", "b.cr2")
    assert outputs([str(tmp_path / "in")], tmp_path / "out") == ["a.heic.png", "b.cr2.png"]


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("a.jpeg", {}, "a.jpeg"),
        ("a.gif", {}, "a.png"),
        ("a", {}, "a.png"),
        ("a.xyz", {}, "a.xyz.png"),
        ("a.b.JPG", {"suffix": "_restored"}, "a.b_restored.JPG"),
        ("a.jpg", {"ext": "webp"}, "a.webp"),
        ("ünï côdé 日本.png", {}, "ünï côdé 日本.png"),
    ],
)
def test_output_names(tmp_path, name, options, expected):
    touch(tmp_path, name)
    assert outputs([str(tmp_path / name)], tmp_path / "out", **options) == [expected]


def test_a_file_name_as_output(tmp_path):
    touch(tmp_path, "a.jpg", "b.jpg")
    target = tmp_path / "better.png"
    assert plan_jobs(collect_inputs([str(tmp_path / "a.jpg")]), target)[0].output == target
    two = collect_inputs([str(tmp_path / "a.jpg"), str(tmp_path / "b.jpg")])
    touch(tmp_path, "better.png")
    with pytest.raises(UsageError, match="is a file"):
        plan_jobs(two, target)


def test_patterns_keep_the_tree_below_their_fixed_part(tmp_path, monkeypatch):
    touch(tmp_path, "in/x/1.jpg", "in/y/1.jpg", "in/y/2.png")
    monkeypatch.chdir(tmp_path)
    assert outputs(["in/**/*.jpg"], tmp_path / "out") == ["x/1.jpg", "y/1.jpg"]
    assert outputs(["in/?"], tmp_path / "out") == ["x/1.jpg", "y/1.jpg", "y/2.png"]
    refusals = collect_inputs(["none/*.jpg", "absent.jpg"]).refusals
    assert [refusal.reason for refusal in refusals] == ["not_found", "not_found"]


def test_the_same_file_twice_is_one_job(tmp_path):
    touch(tmp_path, "a.jpg")
    name = str(tmp_path / "a.jpg")
    assert len(collect_inputs([name, name]).sources) == 1


def test_two_inputs_for_one_output_are_refused(tmp_path):
    touch(tmp_path, "one/a.jpg", "two/a.jpg", "b.gif", "b.png")
    folders = collect_inputs([str(tmp_path / "one"), str(tmp_path / "two")])
    with pytest.raises(UsageError, match=r"one/a\.jpg and .*two/a\.jpg"):
        plan_jobs(folders, tmp_path / "out")
    with pytest.raises(UsageError, match="written twice"):
        outputs([str(tmp_path / "b.gif"), str(tmp_path / "b.png")], tmp_path / "out")


def test_an_input_is_never_the_output(tmp_path):
    touch(tmp_path, "a.jpg", "b.jpg")
    with pytest.raises(UsageError, match="would be overwritten"):
        outputs([str(tmp_path)], tmp_path)
    assert outputs([str(tmp_path / "a.jpg")], tmp_path, suffix="_new") == ["a_new.jpg"]


def test_an_input_behind_a_link_is_never_the_output(tmp_path):
    touch(tmp_path, "real/a.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(UsageError, match="would be overwritten"):
        outputs([str(tmp_path / "real")], tmp_path / "link")


def test_results_inside_the_input_folder_are_not_inputs(tmp_path):
    touch(tmp_path, "a.jpg", "out/a.jpg")
    inputs = collect_inputs([str(tmp_path)], outside=tmp_path / "out")
    assert [source.path.name for source in inputs.sources] == ["a.jpg"]
    assert len(plan_jobs(inputs, tmp_path / "out")) == 1


def test_a_loop_of_links_ends(tmp_path):
    touch(tmp_path, "in/a.jpg")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    assert outputs([str(tmp_path / "in")], tmp_path / "out") == ["a.jpg"]


def test_empty_folders_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    refusals = collect_inputs([str(tmp_path / "empty")]).refusals
    assert [(r.name, r.reason) for r in refusals] == [(str(tmp_path / "empty"), "empty_folder")]


def test_names_that_are_not_unicode(tmp_path):
    (tmp_path / "in").mkdir()
    odd = os.path.join(os.fsencode(tmp_path / "in"), b"\xff\xfe.jpg")
    with open(odd, "wb") as file:
        file.write(b"x")
    assert len(outputs([str(tmp_path / "in")], tmp_path / "out")) == 1
