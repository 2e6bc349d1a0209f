"""Benchmarks for copy detection made from any photographs."""

from patchssl.data.copies.dataset import CopiesSummary, write_copies

__all__ = ["CopiesSummary", "write_copies"]
