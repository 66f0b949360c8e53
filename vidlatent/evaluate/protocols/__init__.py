"""Scores as the papers computed them, next to the papers' own numbers.

definitions.py    the protocols: frames, size, metrics, what the papers leave open
paper_tables.py   the numbers that the papers print
run.py            carry a protocol out
report.py         its report
"""
