"""Words that every room shares: shape letters, errors, devices, the logger."""
