"""Programs besides the node: player, recorder, probe, and those that start them."""
