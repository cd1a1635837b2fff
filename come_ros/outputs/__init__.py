"""From a submap to messages and files: clouds, motion, map, topics."""
