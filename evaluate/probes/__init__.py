"""The parts of linear probes: how heads are trained, chosen and held out."""
