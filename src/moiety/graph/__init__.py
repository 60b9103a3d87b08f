"""What one step must do: operators with FLOPs, bytes and groups; no time in it."""
