"""What the paper measures beside accuracy: approximation, spectrum, stability."""
