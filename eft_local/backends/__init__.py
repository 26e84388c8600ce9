"""What evaluates tokens: the seam (`base`), and its implementations."""
