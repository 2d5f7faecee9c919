"""The suite: mirrors the four packages; parity/ holds the comparisons with public peers."""
