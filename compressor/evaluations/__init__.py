"""What a file may be asked besides its score: calibration, robustness, generalisation, changes by class, what went."""
