"""``config.optim`` and ``config.discriminator.optim``: AdamW and its learning rate."""

from ml_collections import ConfigDict


def get_optim() -> ConfigDict:
    optim = ConfigDict()
    optim.lr = 1e-4  # peak learning rate
    optim.schedule = "cosine"  # after the warm-up: cosine | constant | linear (to zero)
    optim.final_lr_share = 0.0  # share of the peak rate that is left at the last step
    optim.warmup_steps = 0  # steps of linear growth from zero to the peak
    # (step, factor) points of a further factor on the rate, with straight lines between them
    optim.ramp = ()
    optim.b1 = 0.9  # decay of AdamW's mean of the gradients
    optim.b2 = 0.95  # decay of AdamW's mean of their squares
    optim.eps = 1e-8  # added to AdamW's denominator
    optim.weight_decay = 1e-4  # on kernels only, never on norms and biases
    optim.clip_norm = 1.0  # largest global norm of the gradients; 0: no clipping
    optim.clip_after = 0  # number of steps without clipping at the start
    # Path expressions are regular expressions that are matched from the start of a path.
    # Pairs (path expression, factor of the rate); the first whose expression matches counts
    optim.lr_factors = ()
    optim.no_decay = ""  # path expression of parameters without weight decay, such as router_
    optim.freeze = ""  # path expression of parameters that are not trained, such as encoder/
    return optim


def get_lora() -> ConfigDict:
    """Low-rank adapters that are trained in place of the model's parameters."""
    lora = ConfigDict()
    lora.rank = 0  # of the adapters (128 for large models); 0: train all parameters
    lora.alpha = 0.0  # adapters count alpha / rank times; 0: once
    lora.targets = ".*kernel$"  # path expression of the kernels that are adapted
    lora.full = ""  # path expression of parameters that are trained in full beside the adapters
    # (path expression, row numbers) pairs of parameters of which only these rows are trained, such
    # as an embedding's of a few tokens
    lora.rows = ()
    # Share of an adapter's inputs that are left out in training, drawn for each token and step; of
    # the task 'reward', in the blocks of VideoAlign's language model (text/blocks/)
    lora.dropout = 0.0
    return lora
