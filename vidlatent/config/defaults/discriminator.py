"""``config.discriminator``: the adversarial loss of a tokenizer."""

from ml_collections import ConfigDict

from vidlatent.config.defaults.optim import get_optim


def get_discriminator() -> ConfigDict:
    discriminator = ConfigDict()
    # name of models.discriminators.DISCRIMINATORS and its fields; empty: no discriminator
    discriminator.model = ConfigDict()
    discriminator.loss = "hinge"  # hinge | non_saturating
    discriminator.weight = 0.1  # of the adversarial loss in the tokenizer's loss
    discriminator.scale = 1.0  # of the discriminator's own loss
    # Before this step there is no adversarial loss, and the discriminator is not trained
    discriminator.start_step = 0
    discriminator.warmup_steps = 0  # steps of linear growth of the weight after start_step
    discriminator.images = True  # whether batches of single frames go to the discriminator too
    # Path expression of a layer, such as decoder/conv_out/kernel. With one, the weight is relative
    # to gradients there: weight * |gradient of reconstruction| / |gradient of adversarial loss|
    discriminator.adaptive_layer = ""
    discriminator.adaptive_terms = ()  # loss terms that count as reconstruction; empty: all
    discriminator.r1_weight = 0.0  # gamma of the gradient penalty on real clips
    discriminator.r1_every = 16  # the penalty is taken every so many steps, and multiplied by this
    discriminator.r1_crop = (17, 256, 256)  # largest frames, height, width the penalty is taken on
    discriminator.lecam_weight = 0.0  # of LeCam's regularisation
    discriminator.lecam_decay = 0.999  # of the averaged predictions that it compares with
    discriminator.inherit = True  # initialise from the discriminator of train.init_from's run
    discriminator.optim = get_optim()
    discriminator.optim.schedule = "constant"
    discriminator.optim.weight_decay = 0.0
    return discriminator
