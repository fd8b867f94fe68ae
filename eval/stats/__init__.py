"""Numbers with their intervals, and comparisons of them."""
