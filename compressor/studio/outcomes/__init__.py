"""What came of runs, as the page shows it: stage by stage, two beside each other, and the samples that flipped."""
