"""What commands find out about a dictionary after its training, as JSON files beside it."""
