"""Clips that are shown come from as many files as there are, spread over the set."""

from vidlatent.evaluate.picks import Picks


def run(batches, count):
    picks = Picks(count, len(batches))
    for number, files in enumerate(batches):
        picks.look(number, files, lambda n=number, f=files: [(n, x) for x in f])
    return picks.shown


def test_another_file_takes_the_place_of_a_repeated_one():
    shown = run([["a", "a"], ["a", "a"], ["a", "b"], ["c", "c"]], 3)
    assert sorted(file for _, file in shown) == ["a", "b", "c"]


def test_one_file_alone_is_shown_several_times():
    assert [file for _, file in run([["a", "a"], ["a", "a"]], 3)] == ["a"] * 3


def test_many_files_are_spread_over_the_set():
    shown = run([[f"{n}{x}" for x in "abcd"] for n in range(8)], 4)
    assert [batch for batch, _ in shown] == [0, 2, 4, 6]


def test_clips_are_made_only_for_what_is_taken():
    picks = Picks(1, 2)
    picks.look(0, ["a"], lambda: [1])
    picks.look(1, ["b"], lambda: 1 / 0)
    assert picks.shown == [1]
