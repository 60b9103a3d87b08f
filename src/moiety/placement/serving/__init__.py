"""Which copy serves a token, and what that makes tokens reach."""
