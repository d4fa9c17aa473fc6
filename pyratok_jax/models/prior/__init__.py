"""Priors over tokens: one transformer family in three orders of generation."""
