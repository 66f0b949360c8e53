"""The mode ``eval``: scores of tokenizers and generators, and the reports that show them.

A metric defines a number (``vidlatent.metrics``), a protocol is one paper's procedure
(``protocols/``), a score is a result.

    run.py                 the mode: which evaluation a workdir gets
    tokenizer.py           scores of a tokenizer on validation clips; ``tokenizer_report.py``
    running_scores.py      scores from measurements, batch by batch
    latent_statistics.py   what those clips' latents are like
    protocols/             scores as a paper computed them, next to the paper's own numbers
    compare/               scores of generated videos against real ones
    rewards/               videos of folders scored by rewards
    clips.py               the clips of a folder that a protocol scores
    generator.py           a generator: ``generator_loss.py``, ``generator_report.py``
    layer_memory.py        how much a generator's layers read of earlier ones
    vbench.py              VBench's totals from the files that its own program writes
    vbench_prompts.py      VBench's prompts and pictures as files for --mode=sample
"""
