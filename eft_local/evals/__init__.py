"""Questions with known answers, put to what a recipe can answer with, and how sure the result is."""
