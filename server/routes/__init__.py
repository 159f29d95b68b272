"""What each address of the API answers: one file for dictionaries, one for features."""
