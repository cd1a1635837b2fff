"""Refines windows by bundle adjustment over tracked points: poses, depth and focal lengths."""
