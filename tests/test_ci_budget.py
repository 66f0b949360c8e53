"""CI's choice of slow tests: which come first, what is left out, what is told."""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def load():
    spec = importlib.util.spec_from_file_location("slow_tests", ROOT / ".ci" / "slow_tests.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # data classes look their module up
    spec.loader.exec_module(module)
    return module


slow_tests = load()
Job, Outcome, Times = slow_tests.Job, slow_tests.Outcome, slow_tests.Times


def jobs_of(count, **keys):
    return [Job(f"tests/a/test_{i}.py", ("t",), 1.0, **keys) for i in range(count)]


@pytest.fixture
def house(tmp_path):
    """A small repository's files."""
    files = {
        "vidlatent/losses/pixels.py": "",
        "vidlatent/models/net.py": "",
        "vidlatent/models/other.py": "",
        "tests/losses/test_terms.py": "def test():\n    from vidlatent.models import net",
        "tests/models/helpers.py": "import vidlatent.losses.pixels",
        "tests/models/sizes.py": "",
        "tests/models/test_net.py": "from tests.models.helpers import x\nimport sizes, numpy",
        "tests/test_main.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_imports_are_followed_through_helpers(house):
    found = slow_tests.imported_files("tests/models/test_net.py", house)
    assert found == {
        "tests/models/helpers.py",
        "tests/models/sizes.py",
        "vidlatent/losses/pixels.py",
    }


@pytest.mark.parametrize(
    ("changed", "losses", "models", "main"),
    [
        ("tests/losses/test_terms.py", 0, 3, 3),
        ("tests/models/sizes.py", 3, 1, 3),
        ("vidlatent/losses/pixels.py", 2, 1, 3),
        ("vidlatent/models/net.py", 1, 2, 3),
        ("vidlatent/models/other.py", 3, 2, 3),
        ("tests/conftest.py", 3, 3, 1),
        ("README.md", 3, 3, 3),
    ],
)
def test_nearness(house, changed, losses, models, main):
    tests = ("tests/losses/test_terms.py", "tests/models/test_net.py", "tests/test_main.py")
    assert [slow_tests.nearness(t, {changed}, house) for t in tests] == [losses, models, main]


def test_the_near_come_first_and_equals_in_turn():
    near, far = jobs_of(2, nearness=1), jobs_of(10)
    orders = [slow_tests.in_order([*far, *near], number) for number in range(12)]
    assert all(set(order[:2]) == set(near) and set(order[2:]) == set(far) for order in orders)
    assert slow_tests.in_order(reversed([*far, *near]), 5) == orders[5]
    # Three fit into each of a dozen commits: all ten have run.
    assert {job for order in orders for job in order[2:5]} == set(far)
    assert slow_tests.in_order([], 7) == []


def test_what_does_not_fit_is_foreseen():
    jobs = [Job(str(s), (), s) for s in (50.0, 30.0, 60.0, 20.0, 15.0)]
    # Two at a time: 50; 30, then 20 in the same place; 60 and the last 15 find no room in 60.
    assert slow_tests.foresee(jobs, 60.0) == [True, True, False, True, False]
    assert all(slow_tests.foresee(jobs, float("inf")))
    assert not any(slow_tests.foresee(jobs, -5.0))


def test_times_are_those_of_this_machine():
    made = Times(1000.0, {"a": 10.0, "gone": 5.0, "b": 4.0})
    assert made.here(3000.0).files == {"a": 30.0, "gone": 15.0, "b": 12.0}
    assert made.here(None) == made and Times().here(70.0) == Times(70.0)
    outcomes = [
        Outcome(Job("a", (), 1.0), 33.0, False, False, ""),
        Outcome(Job("b", (), 1.0), 99.0, False, True, ""),
        Outcome(Job("c", (), 1.0), 1.0, True, False, ""),
    ]
    measured = made.here(3000.0).with_measured(outcomes, ["a", "b", "c"])
    assert measured == Times(3000.0, {"a": 33.0, "b": 12.0})


def test_the_table_reads_what_was_measured(tmp_path):
    Times.read(ROOT / slow_tests.TABLE)
    (tmp_path / "table.json").write_text(Times(2.0, {"a": 1.04}).text())
    assert Times.read(tmp_path / "table.json") == Times(2.0, {"a": 1.0})
    assert json.loads(Times().text()) == {"fast_suite": None, "files": {}}


PRINTS = {
    "good": "print('==== short test summary info ====\\n==== 2 passed, 1 skipped in 1.00s ====')",
    "bad": "print('t/bad.py::t FAILED [9%]\\n==== 1 failed in 1.00s ===='); raise SystemExit(1)",
    "long": "print('t/long.py::one PASSED [50%]'); import time; time.sleep(60)",
    "long and bad": "print('t/l.py::one FAILED [50%]'); import time; time.sleep(60)",
    "deaf": "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)",
}


def run(jobs, folder, until=10.0, stop=10.0):
    told = []
    now = time.time()
    outcomes, left_out = slow_tests.run(
        jobs,
        now + until,
        now + stop,
        command=lambda name: [sys.executable, "-c", PRINTS[name]],
        tell=told.append,
        folder=folder,
    )
    assert told == outcomes
    return {outcome.job.file: outcome for outcome in outcomes}, left_out


def test_files_are_left_out_one_by_one(tmp_path):
    large, good, bad = (Job(n, ("t",), s) for n, s in (("large", 99.0), ("good", 1), ("bad", 1)))
    ran, left_out = run([large, good, bad], tmp_path)
    assert left_out == [large]
    assert not ran["good"].failed and ran["bad"].failed
    assert not ran["good"].stopped and not ran["bad"].stopped
    assert slow_tests.counts(ran.values()) == "2 passed, 1 failed, 1 skipped"
    assert run([good, bad], tmp_path, until=-1.0) == ({}, [good, bad])


def test_an_overrun_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(slow_tests, "PATIENCE_SECONDS", 1.0)
    begin = time.monotonic()
    tests = ("t/long.py::one", "t/long.py::two")
    jobs = [Job(name, tests, 0.0) for name in ("long", "long and bad")]
    ran, _ = run(jobs, tmp_path, stop=1.5)
    assert all(outcome.stopped for outcome in ran.values())
    assert ran["long"].missed == ("t/long.py::two",) and not ran["long"].failed
    assert ran["long and bad"].failed
    ran, _ = run([Job("deaf", tests, 0.0)], tmp_path, stop=1.0)
    assert ran["deaf"].stopped and ran["deaf"].missed == tests
    assert time.monotonic() - begin < 30


def test_what_was_left_out_is_told_by_name_and_number(capsys):
    ended = (
        "t.py::a PASSED [9%]\n==== short test summary info ====\nS 1\n==== 1 passed in 2.00s ===="
    )
    cut = "t/b.py::x[1 2] FAILED [9%]\nwhy"
    outcomes = [
        Outcome(Job("t/a.py", ("t/a.py::a",), 1.0), 2.0, False, False, ended),
        Outcome(Job("t/b.py", ("t/b.py::x[1 2]", "t/b.py::y"), 1.0), 2.0, True, True, cut),
    ]
    left_out = [Job("t/c.py", ("t/c.py::z[1]", "t/c.py::z[2]", "t/c.py::K::w"), 1.0)]
    assert slow_tests.summary(outcomes, left_out).splitlines() == [
        "Left out for lack of time: 4 slow tests in 2 files.",
        "    3 t/c.py: z x 2, K::w",
        "    1 t/b.py: y",
        "FAILED: t/b.py",
        "Stopped before its end: t/b.py",
        "==== slow tests: 1 passed, 4 left out ====",
    ]
    for outcome in outcomes:
        slow_tests.tell(outcome)
    told = capsys.readouterr().out
    assert "=== 1 passed in 2.00s ===" in told and "t.py::a" not in told
    assert "t/b.py stopped after 2 s; 1 s were expected." in told and "why" in told


@pytest.mark.parametrize(("failed", "status"), [(False, 0), (True, 1)])
def test_a_failure_is_the_exit_status(monkeypatch, tmp_path, failed, status):
    files = {"tests/a/test_a.py": ("tests/a/test_a.py::t",)}
    for name, value in {
        "collect": lambda: files,
        "changed_files": set,
        "nearness": lambda file, changed: 3,
        "MEASURED": tmp_path / "measured.json",
        "run": lambda jobs, *_, **__: ([Outcome(jobs[0], 3.0, failed, False, "")], []),
    }.items():
        monkeypatch.setattr(slow_tests, name, value)
    monkeypatch.setattr(slow_tests.signal, "signal", lambda *_: None)
    assert slow_tests.main(["--minutes=1", "--fast-seconds=9"]) == status
    kept = {} if failed else {"tests/a/test_a.py": 3.0}
    assert json.loads((tmp_path / "measured.json").read_text())["fast_suite"] == 9
    assert kept.items() <= json.loads((tmp_path / "measured.json").read_text())["files"].items()


def test_without_history_nothing_is_near(tmp_path):
    """A repository on main, a branch of it, a shallow clone, and a folder without git."""
    author = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    full, shallow, bare = (tmp_path / name for name in ("full", "shallow", "bare"))
    full.mkdir()
    bare.mkdir()

    def commit(name):
        (full / name).write_text("x")
        subprocess.run(["git", "add", name], cwd=full, check=True)
        subprocess.run(["git", *author, "commit", "-qm", name], cwd=full, check=True)

    subprocess.run(["git", "init", "-q", "-b", "main"], cwd=full, check=True)
    commit("first")
    assert slow_tests.changed_files(full) == set() and slow_tests.commit_number(full) == 1
    commit("second")
    assert slow_tests.changed_files(full) == {"second"} and slow_tests.commit_number(full) == 2
    subprocess.run(["git", "switch", "-qc", "branch"], cwd=full, check=True)
    commit("third")
    (full / "first").write_text("not committed")
    assert slow_tests.changed_files(full) == {"first", "third"}
    clone = ["git", "clone", "-q", "--depth=1", "--single-branch", f"file://{full}", str(shallow)]
    subprocess.run(clone, check=True)
    assert slow_tests.changed_files(shallow) == set() and slow_tests.commit_number(shallow) > 3
    assert slow_tests.changed_files(bare) == set() and slow_tests.commit_number(bare) == 0
