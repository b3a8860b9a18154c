"""What is told of a workload that was taken otherwise than given, or that is more often a mistake than meant."""


class WorkloadWarning(UserWarning):
    """Something about a workload that was taken otherwise than given, or that is more often a mistake than meant."""
