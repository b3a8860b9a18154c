"""Several recipes on one workload: the work they share, what controls say, and which of them can be told apart."""
