"""Sources of frames: recorded, on disk, or generated."""
