"""What evaluation asks of a tokenizer or a codec."""
