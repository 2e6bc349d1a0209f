"""Patch-wise self-supervised pretraining of vision transformers, and the evaluation of any vision backbone."""

__version__ = "0.1.0"
