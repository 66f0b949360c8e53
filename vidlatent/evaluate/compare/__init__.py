"""Scores of generated videos: a set of them against a set of real clips.

definitions are protocols (``protocols/generation.py``); here they are carried out:

run.py       from a config to scores and a report
sides.py     what metrics see of each of the two sets
draw.py      samples of a generator to score, where no folder of them is given
report.py    JSON, a Markdown table beside the paper's numbers, a page with pictures
"""
