"""How much goes of which layer: costs, losses, goals, and the knapsack between them."""
