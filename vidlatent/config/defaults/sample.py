"""``config.sample`` (generators): what --mode=sample makes, and what training shows."""

from ml_collections import ConfigDict


def get_sample() -> ConfigDict:
    sample = ConfigDict()
    sample.prompts = ()  # texts, or names or numbers of classes; empty: every class
    sample.count = 1  # videos of each prompt
    sample.seed = 0  # of the first video; each further one adds 1
    sample.size = ()  # frames, height, width; empty: those of the last of data.buckets
    sample.batch = 4  # videos drawn at the same time
    # Networks in memory: swap (texts and pictures are encoded first, and their encoders released
    # before the generator is loaded) | keep (all stay once loaded) | auto: keep if all fit, else
    # swap
    sample.residency = "auto"
    # Workdir of a refiner: videos made by this base model, the refiner's upsampler and the refiner
    # (FSVideo 2.4), of the size that the refiner's sample.size says unless another one is given
    sample.refine = ""
    sample.fps = 0.0  # of the files; 0: that of the clips behind the latents
    # Name files as VBench wants them, <prompt>-<k>.mp4. With --prompts=<a folder of prompts by
    # dimension> (vidlatent.evaluate.vbench_prompts), make one folder for each dimension
    sample.vbench = False
    sample.clamp_first = False  # overwrite the result's first latent frame with the given one
    sample.grid = 4  # videos shown at each evaluation while training; 0: none
    return sample
