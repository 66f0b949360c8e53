"""VideoAlign's reward (Liu et al. 2025): Qwen2-VL-2B that rates a video three times.

frames.py     which frames it sees, their size, and their patches
vision.py     the vision tower
language.py   the language model
positions.py  rotary positions of text and video tokens
model.py      all of it with the reward's head
template.py   the token numbers around the video and the prompt
released.py   released files: low-rank adapters merged, second copies dropped
names.py      importer table
definitions.py  entries of ``models.pretrained.NETWORKS``
"""
