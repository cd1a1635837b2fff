"""Points that are tracked from image to image, and the pose of each image from them."""
