"""Pod-size programs compiled and measured on machines without a TPU."""
