"""The studies besides accuracy: approximation, locality, similarity, spectrum, stability."""
