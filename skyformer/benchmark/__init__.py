"""Costs of attention: time, memory and operations, compared with the limits of the machine."""
