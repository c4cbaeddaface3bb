"""The flags of what plans take for granted."""

from absl import flags

from internvl_jax.planning import Assumed

_KERNEL = flags.DEFINE_float("kernel_rate", Assumed.kernel, "assumed: share of the peak that kernels reach")
_LATENCY = flags.DEFINE_float("latency_us", 1e6 * Assumed.latency, "assumed: microseconds of a transfer without bytes")
_MEDIAN = flags.DEFINE_integer(
    "median_length", None, "of training: median tokens of the samples that rows are packed of; one sample a row"
)
_SIGMA = flags.DEFINE_float("length_sigma", Assumed.sigma, "of training: sigma of log-normal lengths; 0: all are equal")


def assumed() -> Assumed:
    """What the flags say.

    Raises:
      InputError: values that can't be.
    """
    return Assumed(_KERNEL.value, _LATENCY.value / 1e6, _MEDIAN.value, _SIGMA.value)
