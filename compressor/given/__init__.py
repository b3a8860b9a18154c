"""What people have, made into what a workload holds: loaders, datasets, models and plain functions."""
