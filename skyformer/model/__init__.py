"""Batches → encoder (attention backend) → head → loss and metrics; schedules and checkpoints."""
