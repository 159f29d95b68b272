"""What people say of features: labels, votes, tags, notes, lists and blind ratings, in a small SQLite file of their own."""
