"""What has to be done: requests, their lengths and limits, and where their tokens are routed."""
