"""Training checkpoints: Orbax steps that are verified with checksums.

manager.py   ``Checkpointer``: saves, keeps, finds and restores the steps of a run
layout.py    how a training state is divided into the items of a step
digests.py   checksums of the arrays, saved with the step
storage.py   errors of Orbax and of the file system, and what is stored about the machine
"""
