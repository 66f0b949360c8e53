"""Scores of folders of videos by rewards, ``--mode=eval --config.eval.rewards=...``.

videos.py    the videos of a folder, each at its own length, size and frame rate
run.py       score them
report.py    JSON, a table and a page
"""
