"""How long the model's unit is, in metres: readings of each source, a running estimate of each, and one place that decides."""
