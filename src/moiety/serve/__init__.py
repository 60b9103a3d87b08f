"""The server: OpenAI's API over HTTP, the journal of what is in flight, and what each step of the ranks computes."""
