"""What converters do, apart from their command lines: names of tensors, sizes, plans."""
