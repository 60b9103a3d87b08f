"""What the experts' loads will be in the next window: predictors, and the choice between them by rolling back-test."""
