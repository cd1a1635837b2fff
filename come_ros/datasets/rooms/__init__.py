"""Procedural textured rooms with exact depth and poses."""
