"""The mode ``sample``, and generators from Python: videos from a trained generator.

run.py         ``--mode=sample``: requests in, a folder of videos out
load.py        ``load_generator``: a generator by the folder of its run
call.py        ``generator(prompt, image=...)``: its arguments and their errors
generator.py   ``Generator``: requests to latents and frames
residency.py   which networks are in memory when
conditions.py  texts and pictures of all requests, encoded before anything is drawn
sampler.py     ``LatentSampler``: the compiled step of one generator at one size
requests.py    prompts, classes, pictures and seeds, from flags and files
outputs.py     folders, page, contact sheet and settings
progress.py    how far it is
grid.py        samples that training shows
"""
