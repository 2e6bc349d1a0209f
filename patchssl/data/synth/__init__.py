"""Built-in images drawn from a seed: classes, copies and instances, in the ordinary layouts."""

from patchssl.data.synth.dataset import SynthSummary, write_dataset

__all__ = ["SynthSummary", "write_dataset"]
