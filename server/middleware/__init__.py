"""What a request passes before a route answers it."""
