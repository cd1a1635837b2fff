"""Points followed from image to image, and the pose of each image that they tell."""
