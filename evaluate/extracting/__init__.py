"""The parts of feature extraction: forward passes, and what is kept of them."""
