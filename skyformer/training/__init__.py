"""A run: its folder, records, loggers, callbacks, and checks of its configuration."""
