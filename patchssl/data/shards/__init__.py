"""Images in shards: tar files (WebDataset) and parquet files, on this machine or elsewhere."""
