"""How a state becomes the items of a checkpoint, today and in steps of older versions."""

import numpy as np

from vidlatent.checkpoint.digests import leaf_paths
from vidlatent.checkpoint.layout import find_players, merge, split

ONE = np.ones(2, np.float32)
STATE = {
    "step": np.int32(3),
    "params": {"decoder": {"params": ONE}},  # a module may be called so
    "opt": ({"mu": ONE}, ()),
    "ema": {"decoder": {"params": ONE}},
    "extra": {"bad_steps": np.int32(0)},
    "helpers": {"params": {"w": ONE}, "opt": [ONE]},
    "fake_score": {"params": {"w": ONE}, "opt": [ONE], "stats": ONE},
}


def test_each_player_is_an_item_whatever_it_is_called():
    assert find_players(STATE) == ["helpers", "fake_score"]
    items = split(STATE)
    assert set(items) == {"params", "opt", "ema", "helpers", "fake_score", "extra"}
    assert set(items["extra"]) == {"step", "extra"}
    assert merge(STATE, items) == STATE


def test_players_that_older_versions_kept_in_extra_are_found_there():
    saved = {*leaf_paths(split(STATE)), "extra/helpers/params/w"}
    saved = {path for path in saved if not path.startswith("helpers/")}
    items = split(STATE, saved)
    assert "helpers" not in items and items["extra"]["helpers"] is STATE["helpers"]
    assert merge(STATE, items) == STATE
