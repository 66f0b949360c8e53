"""``config.train``: length of the training, what it starts from, and what it writes."""

from ml_collections import ConfigDict


def get_train() -> ConfigDict:
    train = ConfigDict()
    train.steps = 1000  # of the whole run; learning rate schedules end here
    # Save and leave after this step, for queues with a time limit; 0: only after train.steps
    train.stop_at = 0
    train.init_from = ""  # weights file or workdir to initialise from; empty: random parameters
    train.init_kind = ""  # conversion of the weights of another kind of model; empty: none
    train.init_table = "auto"  # naming of the weights file
    train.init_recipes = ()  # recipes that the initial workdir may have; empty: any
    train.sample_latent = False  # decode a draw from the posterior, not its mean
    # Side of the random patch that large frames decode, in latent cells (8x8 pixels each in the
    # published FSAE); 0: always whole frames
    train.patch_cells = 0
    train.patch_above = 0  # pixels of a frame above which it counts as large
    train.patch_latents = 0  # latent frames of a patch, counted from the first; 0: all
    # Gradients of a patch go on into the encoder, which saw the whole frame; False: such batches
    # train the decoder alone, with much less memory
    train.patch_encoder = True
    train.log_every = 10  # steps between lines of the log
    train.max_bad_steps = 10  # consecutive steps with NaN or infinity after which the run stops
    # Seconds without a step after which a run counts as hanging: it writes the stacks of its
    # threads and ends with status 75. Four times as long for steps that compile; 0: never
    train.hang_timeout = 1800
    train.tensorboard = True  # write TensorBoard files beside metrics.jsonl
    # Steps between histograms of all parameters and of what a step adds to them, in TensorBoard;
    # that step keeps a copy of the parameters. 0: none
    train.histograms = 0
    # First step of a profiler trace in the workdir's profile/, where each of several processes has
    # a folder; 0: none
    train.profile_at = 0
    train.profile_steps = 5  # steps in the trace
    return train
