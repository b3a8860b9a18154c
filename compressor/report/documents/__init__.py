"""Documents that travel with a model: a card for people and hubs, a bill of materials for those who keep lists."""
