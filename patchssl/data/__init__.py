"""Images in: sources, decoding, loading, and the built-in images."""
