"""Decoded and shrunk images in a folder, made once and mapped into memory by every run that wants the same."""

from patchssl.data.cache.cached import CachedImages
from patchssl.data.cache.contents import ImageCache
from patchssl.data.cache.opening import find_image_cache, open_image_cache
from patchssl.data.cache.shrinking import ShrunkImages

__all__ = ["CachedImages", "ImageCache", "ShrunkImages", "find_image_cache", "open_image_cache"]
