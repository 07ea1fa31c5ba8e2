"""The paper's experiments as grids of recipes: cells trained, counted over seeds, and set beside what it reports."""
