"""What factorize, compress and distil share: request, weighting, plan, edit, check."""
