"""Scores as the papers computed them, next to the papers' own numbers.

definitions.py    protocols of reconstructions: frames, size, metrics, what the papers leave open
generation.py     protocols of generated videos; ``evaluate/compare`` carries them out
base.py           what both kinds have
paper_tables.py   the numbers that the papers print
between.py        frames of an interpolator between decoded ones
run.py            carry a protocol out
report.py         its report
tables.py         tables of reports of both kinds
"""
