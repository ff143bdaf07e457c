"""Critics of chunks, and the features that they read."""
