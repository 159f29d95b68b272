"""What people say of features, as the routes meet it: who asks, what is found, and the bodies."""
