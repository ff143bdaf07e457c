"""Demo of the whole path, and its report."""
