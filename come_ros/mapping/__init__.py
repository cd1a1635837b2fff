"""One world: a graph of keyframes, loops between them, and what follows from both: where the odometry frame lies in the map."""
