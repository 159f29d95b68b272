"""What other sites show of a feature whose address is posted there: a title, a sentence and a picture."""
