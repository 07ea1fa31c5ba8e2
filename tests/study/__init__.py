"""Studies: grids, claims, counting, and a whole small one."""
