"""What trust holds: signed folders changed at random, and encryption that is killed."""
