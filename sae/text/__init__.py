"""Text: documents from data sets, packages and installed docs, and the contexts of token ids that they are cut into."""
