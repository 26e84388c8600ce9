"""What evaluates tokens: the seam (`base`), and what stands behind it."""
