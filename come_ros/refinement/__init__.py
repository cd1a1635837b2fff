"""Windows held against points that are followed from image to image: poses, depth and focal lengths by bundle adjustment."""
