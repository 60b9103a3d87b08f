"""Plan, prove, run and look after mixture-of-experts language models on GPU clusters."""
