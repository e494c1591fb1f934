"""The paper's studies besides accuracy: approximation, spectrum, stability."""
