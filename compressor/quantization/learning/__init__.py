"""Training with quantized weights and activations in the loop."""
