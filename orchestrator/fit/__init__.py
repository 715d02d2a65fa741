"""`scalespec fit`: anyone's tables, and a certified law of them."""
