"""The StableHLO format of artifacts."""
