"""What people look up in a store: narrow columns for tables, search, and the bodies of the API with their pages."""
