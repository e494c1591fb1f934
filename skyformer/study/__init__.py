"""What the paper measures apart from accuracy: approximation, spectrum, stability."""
