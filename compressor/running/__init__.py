"""What people use: the pipeline, one run on its way, its folder on disk, and comparisons of several."""
