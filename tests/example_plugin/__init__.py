"""A package of its own that adds one of everything; ``--import=example_plugin`` brings it in.

Nothing in vidlatent knows it. Importing it registers each thing under a name that a config can
give; an entry may be the thing itself or ``'module:name'``, which is imported on first use.
"""

from vidlatent.data.sources.base import SOURCES
from vidlatent.diffusion import SAMPLERS, SCHEDULES
from vidlatent.losses import TERMS
from vidlatent.metrics.base import METRICS, FrameMetric, MetricEntry
from vidlatent.models.discriminators import DISCRIMINATORS
from vidlatent.models.generators import GENERATORS
from vidlatent.models.tokenizers import MODELS
from vidlatent.train.tasks.base import TASKS

MODELS.register("example_tokenizer", "example_plugin.tokenizer:build")
GENERATORS.register("example_generator", "example_plugin.generator:build")
DISCRIMINATORS.register("example_discriminator", "example_plugin.discriminator:ENTRY")
TERMS.register("example_loss", "example_plugin.pure:squared_means_term")
SAMPLERS.register("example_sampler", "example_plugin.pure:half_euler")
SCHEDULES.register("example_schedule", "example_plugin.pure:shifted_flow")
TASKS.register("example_task", "example_plugin.task:ExampleTask")
SOURCES.register("example_source", "example_plugin.source:make")


def _make_metric(request):
    from example_plugin.pure import mean_error

    return FrameMetric(request, "example_metric", mean_error)


METRICS.register(
    "example_metric",
    MetricEntry(_make_metric, "mean absolute difference of 8-bit values", better="lower"),
)
