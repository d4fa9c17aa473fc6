"""The tokenizer: quantisation levels, lookup-free codebook, synthesis."""
