"""An expert that takes over."""
