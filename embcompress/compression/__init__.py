"""From a request to a checked output: request, weighting, plan, edit, check."""
