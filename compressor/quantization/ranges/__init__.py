"""The ranges of activations, from one streaming pass over calibration data."""
