"""The settings of where images come from and how they are read."""

from typing import Literal

from pydantic import Field

from patchssl.setting_types import Count, Fraction, Section


class DataConfig(Section):
    """Reading images."""

    workers: int | None = Field(
        None, ge=0, description="loader processes, for each of several processes; null: chosen from the number of cores"
    )
    max_bad_fraction: Fraction = Field(0.05, description="unreadable images above this fraction stop the run")
    exif_orientation: bool = Field(True, description="turn photographs upright by their EXIF tag")
    division: Literal["auto", "views", "images", "resident"] = Field(
        "auto",
        description="who cuts views out of images; views: loader processes; images: they only decode, and the training "
        "device cuts; resident: the training device, which keeps all images decoded; auto: the fastest",
    )
    cache_images: str | None = Field(None, description="folder in which decoded images are kept; null: nowhere")
    cache_side: Count | None = Field(
        None,
        description="kept images are shrunk to this shorter side, px; null: what the smallest global view takes; "
        "refused without data.cache_images",
    )
    shuffle_buffer: Count = Field(
        4096, description="images of tar or parquet shards that are shuffled among each other, besides their shards"
    )
    image_column: str | None = Field(
        None, description="column of parquet files that holds the images; null: the one that does"
    )
