"""What attention costs: time, memory and operations, beside what the machine could do."""
