"""Training of the bundled models: windows, losses, the long run."""
