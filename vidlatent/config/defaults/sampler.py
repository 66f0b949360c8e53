"""``config.sampler`` (generators): how latents are drawn.

Keys of solvers other than the named one are not read, so that the name alone can be changed.
"""

from ml_collections import ConfigDict


def get_sampler() -> ConfigDict:
    sampler = ConfigDict()
    sampler.name = "euler"  # euler | fresh | fixed | ddim | ancestral | unipc | dpmpp_2m
    sampler.steps = 30  # noise levels from pure noise to the latent
    # How the levels are spaced: clean | diffusers_unipc | wan_unipc | diffusers_euler of flow
    # matching, even | stride | trailing | continuous of DDPM; empty: the first of these
    sampler.spacing = ""
    sampler.shift = 0.0  # of flow matching's levels; 0: the schedule's
    sampler.order = 2  # of unipc: 1 | 2 | 3
    sampler.solver_type = "bh2"  # of unipc: bh1 | bh2
    sampler.corrector = True  # of unipc: correct each step by the next evaluation
    sampler.eta = 0.0  # of ddim: share of fresh noise; 1 is the ancestral sampler
    sampler.guidance = get_guidance()
    sampler.cache_conditions = True  # compute once what does not change over the steps
    # Number format of the states between the layers, and with them of the layer memory, while
    # sampling: float32 | bfloat16 | auto: that of the computation (config.precision.compute). It
    # halves their memory and traffic; training keeps config.generator.residual_dtype
    sampler.residual_dtype = "auto"
    # Run large matrix products in fp8 when sampling, and in plan and bench. The log and
    # samples.json tell the PSNR of the latents against those without fp8
    sampler.fp8 = False
    sampler.cache = get_cache()
    # Use a distilled generator against what is stored with it (distilled.json): other steps or
    # another scale in sampling, or training that undoes its guidance
    sampler.force = False
    return sampler


def get_guidance() -> ConfigDict:
    """Classifier-free guidance, as a chain of links from fewer conditions to all of them."""
    guidance = ConfigDict()
    guidance.scales = ()  # guidance scale of each link; empty: no guidance
    # For each link, the conditions that its less conditioned side leaves out; empty: all of them
    guidance.drops = ()
    guidance.interval = ()  # (low, high) noise levels between which to guide; empty: everywhere
    guidance.rescale = 0.0  # share of the result that is brought back to the unguided contrast
    guidance.negative = ""  # negative prompt; empty: what training put in place of dropped texts
    guidance.batched = True  # evaluate both sides in one batch; False: in turn, with less memory
    return guidance


def get_cache() -> ConfigDict:
    """Skipping of evaluations where the input has hardly changed (TeaCache)."""
    cache = ConfigDict()
    cache.threshold = 0.0  # accumulated relative change up to which evaluations are skipped; 0: off
    cache.polynomial = (1.0, 0.0)  # turns a change of the input into one of the output
    cache.max_skips = 4  # evaluations skipped in a row, at most
    return cache
