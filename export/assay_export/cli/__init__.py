"""The verbs that exporting adds to the command line (entry-point group `assay.verb`)."""
