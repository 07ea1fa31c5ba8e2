"""What users combine deepcait with: packages that are not among our dependencies; skipped if not installed."""
