"""From a camera's message to a model's image: decoding, rectification, resizing, synchronisation, rigs."""
