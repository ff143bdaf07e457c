"""Small policies that train on two CPU cores."""
