"""Every test of deepcait; helpers are imported from here by name."""
