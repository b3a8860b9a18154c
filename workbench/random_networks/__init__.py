"""Networks that grow at random from a seed, pruned at random and compared with the masked original."""
