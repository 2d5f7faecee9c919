"""`evaluate --results`: predictions in the formats of the servers that score them."""
