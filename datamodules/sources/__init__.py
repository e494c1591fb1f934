"""Readers of raw sources: archives, downloads, pictures, a user's new inputs."""
