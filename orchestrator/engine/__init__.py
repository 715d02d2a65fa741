"""All of Ray's training: the connection, the lanes, and what a worker does."""
