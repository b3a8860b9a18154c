"""Which channels matter least: criteria, and the scopes in which their scores are compared."""
