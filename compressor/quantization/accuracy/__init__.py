"""What keeps accuracy: equalization, smoothing, learned rounding, corrected biases."""
