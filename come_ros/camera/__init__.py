"""From a camera's message to a model's image: decode, rectify, resize, synchronise, rig."""
