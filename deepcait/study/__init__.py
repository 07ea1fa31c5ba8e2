"""The paper's experiments at small scale: grids of recipes, trained over seeds, compared with the paper."""
