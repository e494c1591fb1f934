"""Pathfinder and Path-X: the tasks, and the drawing of their images."""
