"""Where each expert lives, and how evenly that loads the ranks."""
