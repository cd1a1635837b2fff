"""Programs of their own beside the node: player, recorder, probe, and those that start them."""
