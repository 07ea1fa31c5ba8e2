"""Training: a recipe, a loss, one loop, and runs that can stop anywhere and continue bit-identical."""
