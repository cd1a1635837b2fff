"""One world: a graph of keyframes with loops between them, and the pose of the odometry frame in the map that follows from it."""
