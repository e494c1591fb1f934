"""Tables and pictures of finished and unfinished runs."""
