"""Mixtures of datasets: sampling rates, the step sampler, features and batches."""

from .encoding import Encoded, digest_of, encode_dataset, encode_stream, group_tasks
from .loader import StepCollator, StepLoader
from .mixture import Mixture, MixtureCollator, feature
from .rates import SAMPLING, SamplingRates, build_rates
from .sampler import Share, StepSampler, shares_of
from .stream import Stream, StreamError, first_rows

__all__ = [
    "SAMPLING",
    "Encoded",
    "Mixture",
    "MixtureCollator",
    "SamplingRates",
    "Share",
    "StepCollator",
    "StepLoader",
    "StepSampler",
    "Stream",
    "StreamError",
    "build_rates",
    "digest_of",
    "encode_dataset",
    "encode_stream",
    "feature",
    "first_rows",
    "group_tasks",
    "shares_of",
]
