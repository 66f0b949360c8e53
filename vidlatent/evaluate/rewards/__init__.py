"""Scores of folders of videos by rewards, ``--mode=eval --config.eval.rewards=...``, and of rewards
by judged pairs.

videos.py    the videos of a folder, each at its own length, size and frame rate
run.py       score them
report.py    JSON, a table and a page
pairs.py     how often a reward that is trained agrees with those who judged
"""
